"""One caller's rows and their results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Generic, Protocol

from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.rows import K, QueuedRow, RenderedRow, RowResult


class Owner(Protocol):
    @property
    def backlog_rows(self) -> int: ...

    def pump(self) -> None: ...

    def drop(self, stream: Stream[Any]) -> None: ...


class Stream(Generic[K]):
    """One caller's rows, keyed by `K`. One task puts rows and calls `finish`, another iterates over results."""

    def __init__(self, dispatcher: Owner, queue: RowQueue, limit: Callable[[int], int]) -> None:
        self._dispatcher = dispatcher
        self.queue = queue
        self.limit = limit
        self._results: asyncio.Queue[list[RowResult[K]] | Exception] = asyncio.Queue()
        self._room = asyncio.Event()
        self.finished = False
        self.outstanding = 0

    async def put(self, rows: Iterable[RenderedRow[K]], *, last: bool = False) -> None:
        """Add rows; waits while the backlog is full. One put is never cut. `last` implies `finish` and helps size the
        last chunks.
        """
        items = [QueuedRow(self, row.key, row.prompt, row.expected_tokens) for row in rows]
        while self.outstanding and self.outstanding + len(items) > self._dispatcher.backlog_rows:
            self._room.clear()
            await self._room.wait()
        self.outstanding += len(items)
        self.queue.add(items)
        if last:
            self.finish()
        self._dispatcher.pump()

    def finish(self) -> None:
        self.finished = True
        self._results.put_nowait([])

    def report(self, results: list[RowResult[Any]] | Exception) -> None:
        self._results.put_nowait(results)

    async def __aiter__(self) -> AsyncIterator[list[RowResult[K]]]:
        """Results as chunks finish, until all rows are out. Raises EngineFailed if no replica can be had."""
        while not (self.finished and self.outstanding == 0):
            results = await self._results.get()
            if isinstance(results, Exception):
                raise results
            if results:
                yield results
                self.outstanding -= len(results)
                self._room.set()

    def close(self) -> None:
        """Forget queued rows, and cancel chunks that only this stream uses."""
        self._dispatcher.drop(self)
