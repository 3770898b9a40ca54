"""The rows of one caller, and their results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Generic, Protocol

from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.rows import K, QueuedRow, RenderedRow, RowResult


class Owner(Protocol):
    """Who opened a stream: the dispatcher."""

    @property
    def backlog_rows(self) -> int: ...

    def pump(self) -> None: ...

    def drop(self, stream: Stream[Any]) -> None: ...


class Stream(Generic[K]):
    """Rows of one caller, who knows each by a `K`.

    Put rows, say `finish`, and iterate over the results; both at once, from two tasks.
    """

    def __init__(self, dispatcher: Owner, queue: RowQueue, limit: Callable[[int], int]) -> None:
        self._dispatcher = dispatcher
        self.queue = queue
        self.limit = limit
        self._results: asyncio.Queue[list[RowResult[K]] | Exception] = asyncio.Queue()
        self._room = asyncio.Event()
        self.finished = False
        self.outstanding = 0

    async def put(self, rows: Iterable[RenderedRow[K]], *, last: bool = False) -> None:
        """Add rows. Waits while the backlog is full; one put is never cut.

        `last` implies `finish`, early enough to size the last chunks.
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
        """There are no more rows."""
        self.finished = True
        self._results.put_nowait([])

    def report(self, results: list[RowResult[Any]] | Exception) -> None:
        """For the dispatcher: hand over results, or why there will be none."""
        self._results.put_nowait(results)

    async def __aiter__(self) -> AsyncIterator[list[RowResult[K]]]:
        """Results as chunks finish, until all rows are out. Raises EngineFailed when no replica can be had."""
        while not (self.finished and self.outstanding == 0):
            results = await self._results.get()
            if isinstance(results, Exception):
                raise results
            if results:
                yield results
                self.outstanding -= len(results)
                self._room.set()

    def close(self) -> None:
        """Forget queued rows, and cancel chunks without other streams' rows."""
        self._dispatcher.drop(self)
