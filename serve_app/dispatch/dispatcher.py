"""Keeps the window of every running replica full of small chunks from all open streams.

Knows rows, chunks, replicas and attempts, not Ray (see `replicas.py`), prompts or files. Each row of a stream comes out
exactly once, completed or failed, in any order. Rows of a dead replica are sent again; suspects (`suspects.py`) run
alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import msgspec

from serve_app.dispatch.attempts import Attempts, check, free_prompts
from serve_app.dispatch.membership import update_workers
from serve_app.dispatch.memory import Memory
from serve_app.dispatch.pool import DispatchSettings, ReplicaPool, ServedModel
from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.rows import QueuedRow
from serve_app.dispatch.shares import Shares
from serve_app.dispatch.stream import Stream
from serve_app.dispatch.worker import OpenRows, Worker
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, EngineInfo, Finished, ReplicaInfo

logger = logging.getLogger(__name__)


class Dispatcher:
    """Async context manager. All methods run in the event loop that entered it. Dispatchers may share `memory`."""

    def __init__(self, pool: ReplicaPool, settings: DispatchSettings, memory: Memory | None = None) -> None:
        self._pool = pool
        self.memory = memory or Memory(settings.memory_bytes)
        self._settings = settings
        self._workers: dict[str, Worker] = {}
        self._queues: dict[bytes, RowQueue] = {}
        self._streams: set[Stream[Any]] = set()
        self._shares = Shares(self._workers, self._queues, settings, self.memory, self.pump)
        self._attempts = Attempts(self._queues, self._streams, settings)
        self._waiting: set[asyncio.Future[ReplicaInfo]] = set()
        self._watchers = 0
        self._idle = True
        self._closed = False
        self._chunk_id = 0
        self._supervisor: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._last_seen = self._refreshed = -math.inf
        # Why there are not more replicas, if known.
        self.note = ""

    async def __aenter__(self) -> Dispatcher:
        self._wake = asyncio.Event()
        self._supervisor = asyncio.create_task(self._supervise(), context=contextvars.Context())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        self._fail_all(EngineFailed("the dispatcher was closed"))
        calls = [call for worker in self._workers.values() for call in worker.calls]
        tasks = [task for task in (self._supervisor, *calls) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._workers.clear()

    @property
    def workers(self) -> list[Worker]:
        return self._shares.workers

    @property
    def backlog_rows(self) -> int:
        """Rows one stream may hold, so that no window runs dry."""
        return max(self._settings.backlog_rows, int(4 * sum(worker.window for worker in self.workers)))

    def stream(
        self,
        template: Chunk,
        *,
        limit: Callable[[int], int] = lambda available: available,
        engine: EngineInfo | None = None,
    ) -> Stream[Any]:
        """Open a stream of rows on at most `limit(available)` replicas; with `engine`, only on those of its model and
        tokenizer. Equal templates share chunks. Raises EngineFailed once closed."""
        if self._closed:
            raise EngineFailed("the dispatcher was closed")
        made_for = ServedModel.of(engine) if engine is not None else None
        kind = msgspec.json.encode((template, made_for))
        queue = self._queues.setdefault(kind, RowQueue(template, made_for))
        stream: Stream[Any] = Stream(self, queue, limit)
        now = time.monotonic()
        if not self._streams:
            self._last_seen = now
        self._streams.add(stream)
        queue.streams.add(stream)
        # Thousands of streams may open.
        if self._idle or now - self._refreshed > self._settings.refresh_s:
            self._wake.set()
        return stream

    async def replica(self) -> ReplicaInfo:
        """Wait for any replica that can work. Raises EngineFailed as a stream does."""
        if self.workers and time.monotonic() - self._refreshed <= self._settings.refresh_s:
            return self.workers[0].replica
        self._last_seen = time.monotonic() if not self._waiting and not self._streams else self._last_seen
        waiter: asyncio.Future[ReplicaInfo] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        self._wake.set()
        try:
            return await waiter
        finally:
            self._waiting.discard(waiter)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._watchers += 1
        self._wake.set()
        try:
            yield
        finally:
            self._watchers -= 1

    def drop(self, stream: Stream[Any]) -> None:
        if stream not in self._streams:
            return
        self._streams.remove(stream)
        if not stream.outstanding:
            self._remove_from_queue(stream)
            return
        stream.queue.discard(stream)
        self._remove_from_queue(stream)
        for worker in self._workers.values():
            for call, rows in worker.calls.items():
                if all(item.stream not in self._streams for item in rows.values()):
                    call.cancel()

    def _remove_from_queue(self, stream: Stream[Any]) -> None:
        stream.queue.streams.discard(stream)
        if not stream.queue.streams:
            for kind in [kind for kind, queue in self._queues.items() if not queue.streams]:
                del self._queues[kind]

    def pump(self) -> None:
        """Give chunks to replicas with room, one each per round, the least busy first."""
        self._shares.reserve()
        while not self._closed and any(queue.rows or queue.suspects for queue in self._queues.values()):
            now = time.monotonic()
            ready = sorted((w for w in self._workers.values() if w.has_room(now)), key=lambda worker: worker.open_rows)
            if not sum([self._give(worker) for worker in ready]):
                return

    def _refill(self, worker: Worker) -> None:
        """Give chunks to the one that has room now: many rows finish, at many replicas."""
        if any(queue.suspects for queue in self._queues.values()):
            self.pump()
            return
        while not self._closed and worker.has_room(time.monotonic()) and self._give(worker):
            pass

    def _give(self, worker: Worker) -> bool:
        for kind, queue in sorted(self._queues.items(), key=lambda entry: entry[1].template.priority):
            if not (queue.rows or queue.suspects) or not self._shares.may_use(queue, worker):
                continue
            if items := self._shares.take(queue, worker):
                self._queues[kind] = self._queues.pop(kind)
                self._start(worker, queue, items)
                return True
        return False

    def _start(self, worker: Worker, queue: RowQueue, items: list[QueuedRow]) -> None:
        worker.open_rows += len(items)
        queue.open_rows += len(items)
        worker.alone = len(items) == 1 and items[0].suspected
        # Own context: Serve's router tells calls apart by the surrounding HTTP request's id, and never routed calls
        # that shared one.
        rows = dict(enumerate(items))
        call = asyncio.create_task(self._call(worker, queue, rows, probing=worker.lost), context=contextvars.Context())
        worker.calls[call] = rows
        call.add_done_callback(lambda done: self._on_done(worker, queue, items, done))

    def _on_done(self, worker: Worker, queue: RowQueue, items: list[QueuedRow], call: asyncio.Task[None]) -> None:
        rows = worker.calls.pop(call)
        free_prompts(items)
        worker.open_rows -= len(rows)
        queue.open_rows -= len(rows)
        worker.alone = False
        if not call.cancelled() and (error := call.exception()) is not None:
            logger.error("defect in dispatch", exc_info=error)
            self._fail_all(EngineFailed(f"defect in dispatch: {error!r}"))
        if rows:
            self.pump()
        else:
            self._refill(worker)

    async def _call(self, worker: Worker, queue: RowQueue, rows: OpenRows, *, probing: bool) -> None:
        self._chunk_id += 1
        prompts = tuple(item.prompt for item in rows.values())
        chunk = msgspec.structs.replace(queue.template, chunk_id=self._chunk_id, prompts=prompts)
        async with aclosing(self._pool.run(worker.replica.replica_id, chunk)) as answers:
            while True:
                try:
                    finished = await anext(answers, None)
                    check(finished, rows)
                except (Exception, asyncio.CancelledError) as error:
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        self._attempts.requeue(queue, [*rows.values()])
                        raise
                    self._attempts.give_back(worker, queue, [*rows.values()], error)
                    asyncio.get_running_loop().call_later(worker.back_off(time.monotonic(), self._settings), self.pump)
                    self._wake.set()
                    return
                if finished is None:
                    return
                if probing and finished.replica.replica_id == worker.replica.replica_id:
                    worker.lost = probing = False
                self._on_finished(worker, queue, rows, finished)

    def _on_finished(self, worker: Worker, queue: RowQueue, rows: OpenRows, finished: Finished) -> None:
        count = len(finished.completions)
        worker.adapt_window(count, finished.waiting, self._settings)
        worker.open_rows -= count
        queue.open_rows -= count
        self._attempts.finish(queue, rows, finished)
        if rows:  # else the call is about to end
            self._refill(worker)

    async def _supervise(self) -> None:
        """Refresh the replica list. Fail the streams after too long without replicas."""
        while True:
            self._idle = not (self._streams or self._waiting or self._watchers)
            if not self._idle:
                try:
                    await self._refresh()
                except Exception:
                    logger.exception("defect in dispatch")
            self._wake.clear()
            timeout_s = None if self._idle else self._settings.refresh_s
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):  # wait_for can swallow a cancel (cpython#86296)
                    await self._wake.wait()

    async def _refresh(self) -> None:
        now = self._refreshed = time.monotonic()
        try:
            running = {replica.replica_id: replica for replica in await self._pool.replicas()}
        except (Exception, asyncio.CancelledError) as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # The controller is away. A lost replica fails its chunks.
            logger.warning("cannot ask for replicas: %s", error)
        else:
            update_workers(running, self._workers, self._queues.values(), self._settings, now)
        if self.workers:
            self._last_seen = now
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(self.workers[0].replica)
            self._refuse_other_models()
            self.pump()
        elif reason := await self._failure():
            self._fail_all(EngineFailed(f"the replicas cannot start: {reason}"))
        elif now - self._last_seen > self._settings.replica_wait_s:
            self._fail_all(EngineFailed(f"no replica was ready for {self._settings.replica_wait_s:g} s"))

    async def _failure(self) -> str:
        try:
            return await self._pool.failure()
        except Exception as error:
            logger.warning("cannot ask why there is no replica: %s", error)
            return ""

    def _refuse_other_models(self) -> None:
        models = {ServedModel.of(worker.replica.engine) for worker in self.workers}
        for stream in self._streams:
            made_for = stream.queue.made_for
            if made_for is not None and made_for not in models:
                now = ", ".join(sorted(map(str, models)))
                stream.fail(EngineFailed(f"the replicas serve {now} now, and this began with {made_for}"))

    def _fail_all(self, error: EngineFailed) -> None:
        for stream in self._streams:
            stream.fail(error)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(error)
