"""Dispatch: the window of every running replica is kept full of small chunks, pulled from whatever streams are open.

Knows rows, chunks, replicas and attempts. Does not know Ray (see `replicas.py`), what a prompt means, or files. Durable
jobs and interactive calls are streams of the same dispatcher: each row put into a stream comes out of it exactly
once, as a completion or as failed, in any order.

A replica's death is not its rows' fault. They are sent again; of those that may have ended it (see `suspects.py`),
one at a time goes alone to a replica that has nothing else, while the others go on. Only what a row does by itself
uses up its attempts.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from serve_app.dispatch.queue import Item, RowQueue
from serve_app.dispatch.suspects import DEATHS, Death, convicts, verdict
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, ChunkResult, Completion, EngineInfo, ReplicaInfo

logger = logging.getLogger(__name__)

# After so many failures of a chunk it is cut into this many pieces at each further one, so that one bad row
# takes no good rows with it: 64 rows are single after three cuts.
WHOLE_ATTEMPTS = 2
PIECES = 4
# Longest pause of a replica after failures. Serve replaces one that is really lost well within it.
MAX_BACKOFF_S = 30.0
# One that died may stay on the pool's list: Serve takes it off after three failed checks, 5 s apart. Longer than this
# says that it may have recovered, or that nobody could take it off: it gets one chunk, to see.
LOST_PAUSE_S = 60.0
# Additive increase, multiplicative decrease of a replica's window, by the engine's queue (factors: AIBrix's batch
# gateway). More than this share of the window waiting in the engine is a queue that only delays others.
QUEUE_SHARE = 0.5
OVERLOADED, SLOW = 0.9, 0.8
# A replica that left the cluster finishes what it has, unless it takes longer than this.
LEAVE_TIMEOUT_S = 60.0


class ReplicaPool(Protocol):
    """The replicas, seen from the driver."""

    async def replicas(self) -> list[ReplicaInfo]:
        """Those that can work now. Any exception means that it could not be found out."""

    async def failure(self) -> str:
        """Why there will be no replica without a change of settings; empty if that is not known."""

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        """Have a replica compute the chunk. Any exception means that nothing of it was done.

        Raises EngineFailed when the replica's engine died or hung, and ReplicaLost when the replica itself is gone.
        Anything else is the chunk's own failure.
        """


class RowResult(msgspec.Struct, frozen=True):
    """What became of the row put in as `key`: a completion by `replica`, or no replica could compute it (`error`).

    `attempts` is how often it was sent, also to replicas that died under it.
    """

    key: Any
    completion: Completion
    replica: ReplicaInfo | None
    attempts: int


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """Sizes, in rows; see `settings.DriverSettings`. `backlog_rows` bounds what a stream holds in memory.

    `max_attempts` are a row's own failures, or how often replicas may be lost under it when the last was its alone.
    """

    chunk_rows: int = 64
    min_chunk_rows: int = 4
    window_rows: int = 192
    max_window_rows: int = 1024
    backlog_rows: int = 16_384
    max_attempts: int = 5
    refresh_s: float = 0.5
    replica_wait_s: float = 900.0


@dataclass(slots=True, eq=False)
class Worker:
    """A replica and what is open on it.

    `lost` since it died, until it answers again. `reserved` for suspects, of which it runs one while `alone`.
    """

    replica: ReplicaInfo
    window: float
    open_rows: int = 0
    failures: int = 0
    paused_until: float = 0.0
    left_at: float | None = None
    lost: bool = False
    reserved: bool = False
    alone: bool = False
    rows_done: int = 0
    calls: dict[asyncio.Task[None], Sequence[Item]] = field(default_factory=dict)

    def room(self, now: float) -> bool:
        """Whether it takes another chunk now."""
        if self.left_at is not None or now < self.paused_until:
            return False
        if self.lost or self.reserved or self.alone:
            return not self.calls
        return self.open_rows < self.window

    def adapt(self, waiting: int, settings: DispatchSettings) -> None:
        """Grow the window while the engine asks for more, shrink it when our rows only stand in its queue."""
        self.failures = 0
        if waiting > self.window * QUEUE_SHARE:
            self.window = max(settings.chunk_rows, self.window * OVERLOADED)
        elif waiting == 0 and self.open_rows >= self.window - settings.chunk_rows:  # the window is what limits
            self.window = min(settings.max_window_rows, self.window + settings.chunk_rows)

    def back_off(self, now: float, settings: DispatchSettings) -> float:
        """Pause it, longer at each failure in a row, or as dead; the pause in seconds."""
        self.failures += 1
        self.window = max(settings.chunk_rows, self.window * SLOW)
        pause_s = LOST_PAUSE_S if self.lost else min(settings.refresh_s * 2**self.failures, MAX_BACKOFF_S)
        self.paused_until = now + pause_s
        return pause_s


class Stream:
    """Rows of one caller. Put rows, say `finish`, and iterate over the results; both at once, from two tasks."""

    def __init__(self, dispatcher: Dispatcher, queue: RowQueue, limit: Callable[[int], int]) -> None:
        self._dispatcher = dispatcher
        self.queue = queue
        self.limit = limit
        self._results: asyncio.Queue[list[RowResult] | Exception] = asyncio.Queue()
        self._room = asyncio.Event()
        self.finished = False
        self.outstanding = 0

    async def put(self, rows: Iterable[tuple[Any, bytes, int]], *, last: bool = False) -> None:
        """Add rows: (key, prompt, expected tokens). Waits while the backlog is full; one put is never cut.

        `last` is a `finish` that is known in time to size the chunks by it.
        """
        items = [Item(self, key, prompt, expected) for key, prompt, expected in rows]
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

    def report(self, results: list[RowResult] | Exception) -> None:
        """For the dispatcher: hand results, or why there will be none, to whoever iterates."""
        self._results.put_nowait(results)

    async def __aiter__(self) -> AsyncIterator[list[RowResult]]:
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
        """Drop what is left: queued rows are forgotten, and chunks that hold no other stream's rows cancelled."""
        self._dispatcher.drop(self)


class Dispatcher:
    """Use as an async context manager. All methods run in the event loop that entered it."""

    def __init__(self, pool: ReplicaPool, settings: DispatchSettings) -> None:
        self._pool = pool
        self._settings = settings
        self._workers: dict[str, Worker] = {}
        self._queues: dict[bytes, RowQueue] = {}
        self._streams: set[Stream] = set()
        self._waiting: set[asyncio.Future[ReplicaInfo]] = set()
        self._watchers = 0
        self._idle = True
        self._closed = False
        self._chunk_id = 0
        self._supervisor: asyncio.Task[None] | None = None
        self._kick = asyncio.Event()
        self._last_seen = self._refreshed = -math.inf
        # Why there are not more replicas, if somebody knows: for people to read.
        self.note = ""

    async def __aenter__(self) -> Dispatcher:
        self._kick = asyncio.Event()
        # In a context of its own: see `_start`.
        self._supervisor = asyncio.create_task(self._supervise(), context=contextvars.Context())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        self._tell(EngineFailed("the dispatcher was closed"))
        calls = [call for worker in self._workers.values() for call in worker.calls]
        tasks = [task for task in (self._supervisor, *calls) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._workers.clear()

    @property
    def workers(self) -> list[Worker]:
        """The replicas that take work now."""
        return [worker for worker in self._workers.values() if worker.left_at is None and not worker.lost]

    @property
    def backlog_rows(self) -> int:
        """What one stream may hold: enough that no window runs dry while the caller prepares more rows."""
        return max(self._settings.backlog_rows, int(4 * sum(worker.window for worker in self.workers)))

    def stream(
        self,
        template: Chunk,
        *,
        limit: Callable[[int], int] = lambda available: available,
        engine: EngineInfo | None = None,
    ) -> Stream:
        """Open a stream of rows that are all asked as `template` says; at most `limit(available)` replicas work.

        With `engine`, only replicas of that model and tokenizer do: the prompts were made for them. Rows of streams
        with equal templates share chunks.
        """
        if self._closed:
            raise EngineFailed("the dispatcher was closed")
        made_for = served(engine) if engine is not None else None
        kind = msgspec.json.encode((template, made_for))
        queue = self._queues.setdefault(kind, RowQueue(template, made_for))
        stream = Stream(self, queue, limit)
        now = time.monotonic()
        if not self._streams:
            self._last_seen = now
        self._streams.add(stream)
        queue.streams.add(stream)
        # Interactive calls open streams by the thousand: only after a while, and never while nobody listens.
        if self._idle or now - self._refreshed > self._settings.refresh_s:
            self._kick.set()
        return stream

    async def replica(self) -> ReplicaInfo:
        """Any replica that can work, as soon as there is one. Raises EngineFailed as a stream does."""
        if self.workers and time.monotonic() - self._refreshed <= self._settings.refresh_s:
            return self.workers[0].replica
        self._last_seen = time.monotonic() if not self._waiting and not self._streams else self._last_seen
        waiter: asyncio.Future[ReplicaInfo] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        self._kick.set()
        try:
            return await waiter
        finally:
            self._waiting.discard(waiter)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep knowing the replicas, though no stream of this dispatcher may need them."""
        self._watchers += 1
        self._kick.set()
        try:
            yield
        finally:
            self._watchers -= 1

    def drop(self, stream: Stream) -> None:
        """Forget a stream; see `Stream.close`."""
        if stream not in self._streams:
            return
        self._streams.remove(stream)
        if not stream.outstanding:  # it ended well, as nearly all do: nothing of it is left anywhere
            self._leave(stream)
            return
        stream.queue.discard(stream)
        self._leave(stream)
        for worker in self._workers.values():
            for call, items in worker.calls.items():
                if all(item.stream not in self._streams for item in items):
                    call.cancel()

    def _leave(self, stream: Stream) -> None:
        stream.queue.streams.discard(stream)
        if not stream.queue.streams:
            self._queues = {kind: queue for kind, queue in self._queues.items() if queue.streams}

    # --- giving work ---

    def pump(self) -> None:
        """Give chunks to replicas that have room, the idlest first and one at a time, so that all get some."""
        self._reserve()
        while not self._closed and any(queue.rows or queue.suspects for queue in self._queues.values()):
            now = time.monotonic()
            ready = sorted((w for w in self._workers.values() if w.room(now)), key=lambda worker: worker.open_rows)
            if not sum([self._give(worker) for worker in ready]):
                return

    def _reserve(self) -> None:
        """Keep replicas for suspects, at most half of what their streams may use: the rest goes on with other rows."""
        queues = [queue for queue in self._queues.values() if queue.suspects]
        kept: set[Worker] = set()
        if queues:
            now, workers = time.monotonic(), self.workers
            able = [
                worker
                for worker in workers
                if worker.alone
                or (now >= worker.paused_until and any(self._may_use(queue, worker) for queue in queues))
            ]
            able.sort(key=lambda worker: (not worker.alone, not worker.reserved, worker.open_rows))
            most = max(1, min(len(workers), *map(self._limit, queues)) // 2)
            wanted = sum(worker.alone for worker in workers) + sum(len(queue.suspects) for queue in queues)
            kept.update(able[: min(most, wanted)])
        for worker in self._workers.values():
            worker.reserved = worker in kept

    def _give(self, worker: Worker) -> bool:
        for kind, queue in sorted(self._queues.items(), key=lambda entry: entry[1].template.priority):
            if not (queue.rows or queue.suspects) or not self._may_use(queue, worker):
                continue
            if items := self._take(queue, worker):
                # Queues of one priority take turns.
                self._queues[kind] = self._queues.pop(kind)
                self._start(worker, queue, items)
                return True
        return False

    def _take(self, queue: RowQueue, worker: Worker) -> list[Item]:
        if worker.reserved or (worker.lost and not queue.rows):
            return queue.pull_suspect(worker.replica.replica_id)
        rows = self._chunk_size(queue, worker) if queue.rows else 0
        return queue.pull(worker.replica.replica_id, rows) if rows else []

    def _may_use(self, queue: RowQueue, worker: Worker) -> bool:
        if queue.made_for is not None and queue.made_for != served(worker.replica.engine):
            return False
        if worker.replica.replica_id in queue.users:
            return True
        return len(queue.users) < self._limit(queue, trying=worker.lost)

    def _limit(self, queue: RowQueue, *, trying: bool = False) -> int:
        available = len(self.workers) + trying
        return max((stream.limit(available) for stream in queue.streams), default=0)

    def _chunk_size(self, queue: RowQueue, worker: Worker) -> int:
        """Rows to give now; 0 if the replica has its share of what is left."""
        sizes = self._settings
        if not all(stream.finished for stream in queue.streams):
            return sizes.chunk_rows
        now = time.monotonic()
        active = [one for one in self.workers if now >= one.paused_until and not one.reserved]
        workers = max(1, min(len(active), self._limit(queue)))
        share = -(-(queue.rows + sum(one.open_rows for one in active)) // workers) - worker.open_rows
        if share <= 0:
            return 0
        # Guided self-scheduling (Polychronopoulos and Kuck, 1987): the less is left, the smaller the chunks, so that
        # all replicas end together. One alone has nobody to wait for.
        guided = -(-queue.rows // (2 * workers)) if workers > 1 else queue.rows
        return min(sizes.chunk_rows, max(sizes.min_chunk_rows, min(guided, share)))

    def _start(self, worker: Worker, queue: RowQueue, items: list[Item]) -> None:
        worker.open_rows += len(items)
        worker.alone = len(items) == 1 and items[0].suspected
        # In a context of its own: a call made in an HTTP request of Serve would carry that request's id, and Serve's
        # router tells calls apart by it (seen: calls never routed, the router spinning).
        call = asyncio.create_task(self._call(worker, queue, items, trying=worker.lost), context=contextvars.Context())
        worker.calls[call] = items
        call.add_done_callback(lambda done: self._ended(worker, done))

    def _ended(self, worker: Worker, call: asyncio.Task[None]) -> None:
        items = worker.calls.pop(call)
        worker.open_rows -= len(items)
        worker.alone = False
        if not call.cancelled() and (error := call.exception()) is not None:
            logger.error("defect in dispatch", exc_info=error)
            for stream in {item.stream for item in items}:
                stream.report(EngineFailed(f"defect in dispatch: {error!r}"))
        self.pump()

    async def _call(self, worker: Worker, queue: RowQueue, items: list[Item], *, trying: bool) -> None:
        replica_id = worker.replica.replica_id
        self._chunk_id += 1
        prompts = tuple(item.prompt for item in items)
        chunk = msgspec.structs.replace(queue.template, chunk_id=self._chunk_id, prompts=prompts)
        try:
            result = await self._pool.run(replica_id, chunk)
            if len(result.completions) != len(items):
                raise ValueError(f"{len(result.completions)} answers to {len(items)} prompts")
        except (Exception, asyncio.CancelledError) as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                self._return(queue, items)
                raise
            reason = f"{replica_id}: {_first_line(error)}"
            logger.warning("chunk %d failed on %s", chunk.chunk_id, reason)
            queue.users.discard(replica_id)  # let another one try, though the job wants no more than these
            if isinstance(error, DEATHS):
                self._lose(worker, by_engine=isinstance(error, EngineFailed))
                self._rescue(queue, items, reason)
            else:
                self._retry(queue, items, reason)
            pause_s = worker.back_off(time.monotonic(), self._settings)
            asyncio.get_running_loop().call_later(pause_s, self.pump)
            self._kick.set()  # is it still there?
        else:
            if trying and result.replica.replica_id == replica_id:  # it is no corpse
                worker.lost = False
            worker.rows_done += len(items)
            worker.adapt(result.waiting, self._settings)
            self._finish(queue, items, result)

    # --- taking results ---

    def _finish(self, queue: RowQueue, items: Sequence[Item], result: ChunkResult) -> None:
        done: dict[Stream, list[RowResult]] = defaultdict(list)
        for item, completion in zip(items, result.completions, strict=True):
            if completion.status == "failed":
                self._retry(queue, [item], f"{result.replica.replica_id}: {completion.error or 'unknown error'}")
            else:
                done[item.stream].append(RowResult(item.key, completion, result.replica, item.attempts + 1))
        for stream, results in done.items():
            stream.report(results)

    def _retry(self, queue: RowQueue, items: Sequence[Item], reason: str) -> None:
        """Queue the rows again, in pieces after a while; a single one only until it had all attempts."""
        _note_attempt(items, reason)
        if len(items) == 1:
            (item,) = items
            item.failures += 1
            if item.failures < self._settings.max_attempts:
                self._return(queue, items)
            else:
                self._fail(item)
            return
        for item in items:
            item.shared_failures += 1
        whole = max(item.shared_failures for item in items) < WHOLE_ATTEMPTS
        step = len(items) if whole else -(-len(items) // PIECES)
        for start in range(0, len(items), step):
            self._return(queue, items[start : start + step])

    def _lose(self, worker: Worker, *, by_engine: bool) -> None:
        """Note that the worker died, once: the calls open on it raise one after the other."""
        replica_id = worker.replica.replica_id
        if worker.lost:
            return
        worker.lost = True
        for queue in self._queues.values():
            queue.forget(replica_id)
        # One that left, and was ended before it was done, was to be ended.
        if worker.left_at is not None and not by_engine:
            return
        on_board = [item for items in worker.calls.values() for item in items]
        death = Death(replica_id, by_engine, alone=worker.alone and len(on_board) == 1)
        for item in on_board:
            item.deaths = (*item.deaths, death)

    def _rescue(self, queue: RowQueue, items: Sequence[Item], reason: str) -> None:
        """Queue the rows of a lost replica again, or convict the one that ended it."""
        _note_attempt(items, reason)
        item = items[0]
        if len(items) == 1 and item.deaths and convicts(item.deaths, self._settings.max_attempts):
            self._fail(item, verdict(item.deaths))
            for death in item.deaths:
                death.explained = True
            for other in self._queues.values():
                other.clear_suspects()
        else:
            self._return(queue, items)

    def _fail(self, item: Item, *reasons: str) -> None:
        failed = Completion(status="failed", error="; ".join((*item.errors, *reasons)))
        item.stream.report([RowResult(item.key, failed, None, item.attempts)])

    def _return(self, queue: RowQueue, items: Sequence[Item]) -> None:
        queue.give_back([item for item in items if item.stream in self._streams])

    # --- knowing the replicas ---

    async def _supervise(self) -> None:
        """Learn of replicas that came and went, and tell the streams when there is none for too long."""
        while True:
            self._idle = not (self._streams or self._waiting or self._watchers)
            if not self._idle:
                try:
                    await self._refresh()
                except Exception:
                    logger.exception("defect in dispatch")
            self._kick.clear()
            # Idle, ask nobody; a new stream or a lost chunk asks at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    self._settings.refresh_s if not self._idle else None
                ):  # not wait_for, which can swallow a cancel (cpython#86296)
                    await self._kick.wait()

    async def _refresh(self) -> None:
        now = self._refreshed = time.monotonic()
        try:
            running = {replica.replica_id: replica for replica in await self._pool.replicas()}
        except (Exception, asyncio.CancelledError) as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # No answer is not a no: what works goes on, and a lost replica fails its chunks.
            logger.warning("cannot ask for replicas: %s", error)
        else:
            self._follow(running, now)
        if self.workers:
            self._last_seen = now
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(self.workers[0].replica)
            self._refuse_other_models()
            self.pump()
        elif reason := await self._failure():
            self._tell(EngineFailed(f"the replicas cannot start: {reason}"))
        elif now - self._last_seen > self._settings.replica_wait_s:
            self._tell(EngineFailed(f"no replica was ready for {self._settings.replica_wait_s:g} s"))

    async def _failure(self) -> str:
        try:
            return await self._pool.failure()
        except Exception as error:  # the controller is away
            logger.warning("cannot ask why there is no replica: %s", error)
            return ""

    def _refuse_other_models(self) -> None:
        """Tell streams whose prompts no replica takes any more; while old and new ones run, the old ones work on."""
        models = {served(worker.replica.engine) for worker in self.workers}
        for stream in self._streams:
            made_for = stream.queue.made_for
            if made_for is not None and made_for not in models:
                now = ", ".join(sorted({model for model, _ in models}))
                stream.report(EngineFailed(f"the replicas serve '{now}' now, and this began with '{made_for[0]}'"))

    def _follow(self, running: dict[str, ReplicaInfo], now: float) -> None:
        for replica_id, replica in running.items():
            if replica_id not in self._workers:
                self._workers[replica_id] = Worker(replica, float(self._settings.window_rows))
            self._workers[replica_id].left_at = None
        for replica_id, worker in list(self._workers.items()):
            if replica_id in running:
                continue
            if worker.left_at is None:
                worker.left_at = now
                for queue in self._queues.values():
                    queue.forget(replica_id)
            if worker.calls:
                if now - worker.left_at > LEAVE_TIMEOUT_S:
                    for call in worker.calls:
                        call.cancel()
            elif not worker.lost or now >= worker.paused_until:  # a corpse may come back on the list
                del self._workers[replica_id]

    def _tell(self, error: EngineFailed) -> None:
        for stream in self._streams:
            stream.report(error)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(error)


def served(engine: EngineInfo) -> tuple[str, str]:
    """What a prompt is made for: model and tokenizer."""
    return engine.model, engine.tokenizer


def _note_attempt(items: Sequence[Item], reason: str) -> None:
    for item in items:
        item.attempts += 1
        item.errors = (*item.errors, reason)


def _first_line(error: BaseException) -> str:
    """The cause that a remote call carried, without Ray's traceback around it."""
    cause = getattr(error, "cause", None)
    text = str(cause if isinstance(cause, BaseException) else error).strip()
    return f"{type(error).__name__}: {text.splitlines()[-1] if text else ''}"[:300]
