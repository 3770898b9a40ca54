"""One caller's rows and their results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Generic, Protocol

from serve_app.dispatch.memory import Holding, Memory, answer_bytes
from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.rows import K, QueuedRow, RenderedRow, RowResult


class Owner(Protocol):
    memory: Memory

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
        # With the bytes of the answers.
        self._results: asyncio.Queue[tuple[list[RowResult[K]], int] | Exception] = asyncio.Queue()
        self._room = asyncio.Event()
        self.prompts, self.answers = Holding(dispatcher.memory), Holding(dispatcher.memory)
        self.finished = False
        self.outstanding = 0

    async def put(self, rows: Iterable[RenderedRow[K]], *, last: bool = False) -> None:
        """Add rows; waits while the backlog is full, in rows or bytes. One put is never cut. `last` implies `finish`
        and helps size the last chunks.
        """
        items = [QueuedRow(self, row.key, row.prompt, row.expected_tokens) for row in rows]
        size = sum([len(item.prompt) for item in items])
        while not (self._has_room(len(items)) and self.prompts.may_take(size)):
            self._room.clear()
            self._dispatcher.memory.when_freed(self._room.set)
            await self._room.wait()
        self.outstanding += len(items)
        self.prompts.change(size)
        self.queue.add(items)
        if last:
            self.finish()
        self._dispatcher.pump()

    def finish(self) -> None:
        self.finished = True
        self._results.put_nowait(([], 0))

    def _has_room(self, rows: int) -> bool:
        return not self.outstanding or self.outstanding + rows <= self._dispatcher.backlog_rows

    def report(self, results: list[RowResult[Any]]) -> int:
        size = sum([answer_bytes(result.completion) for result in results])
        self._results.put_nowait((results, size))
        self.answers.change(size)
        return size

    def fail(self, error: Exception) -> None:
        self._results.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[list[RowResult[K]]]:
        """Results as rows finish, until all are out. Raises EngineFailed if no replica can be had."""
        while not (self.finished and self.outstanding == 0):
            got = await self._results.get()
            if isinstance(got, Exception):
                raise got
            results, size = got
            if results:
                yield results
                self.outstanding -= len(results)
                self.answers.change(-size)
                self._room.set()

    def close(self) -> list[RowResult[K]]:
        """Forget queued rows, and cancel chunks that only this stream uses. Returns results that nobody has taken."""
        self._dispatcher.drop(self)
        self.prompts.close()
        self.answers.close()
        left: list[RowResult[K]] = []
        while not self._results.empty():
            got = self._results.get_nowait()
            left += [] if isinstance(got, Exception) else got[0]
        return left
