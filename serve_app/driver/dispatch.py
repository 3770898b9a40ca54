"""Dispatch: replicas pull small chunks of rows; what a lost replica had goes to another.

Knows chunks, replicas and attempts. Does not know Ray (see `pool.py`), prompts or files. A row's index is its
place in the population handed in; each index is reported exactly once, as a completion or as failed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, ChunkResult, Completion, ReplicaInfo, Sampling

logger = logging.getLogger(__name__)

# After so many failures of a chunk it is cut into this many pieces at each further one, so that one bad row
# takes no good rows with it: 64 rows are single after three cuts.
WHOLE_ATTEMPTS = 2
PIECES = 4
# Longest pause of a lane after failures. Serve replaces a replica that is really lost well within it.
MAX_BACKOFF_S = 30.0


class ReplicaPool(Protocol):
    """The replicas, seen from the driver."""

    async def replicas(self) -> list[ReplicaInfo]:
        """Those that can work now. Any exception means that it could not be found out."""

    async def failure(self) -> str:
        """Why there will be no replica without a change of settings; empty if that is not known."""

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        """Have a replica compute the chunk. Any exception means that nothing of it was done."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of the row at `index`: a completion by `replica`, or no replica could compute it (`error`)."""

    index: int
    completion: Completion
    replica: ReplicaInfo | None
    attempts: int


@dataclass(slots=True)
class _Work:
    indices: Sequence[int]
    attempts: int = 0
    errors: list[str] = field(default_factory=list)

    def after(self, error: str) -> list[_Work]:
        """The pieces to try next."""
        errors = [*self.errors, error]
        attempts = self.attempts + 1
        size = len(self.indices)
        step = size if attempts < WHOLE_ATTEMPTS else -(-size // PIECES)
        return [_Work(self.indices[i : i + step], attempts, list(errors)) for i in range(0, size, step)]


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """Sizes of chunks and windows; see `settings.DriverSettings`."""

    chunk_rows: int = 64
    chunks_in_flight: int = 3
    max_attempts: int = 5
    refresh_s: float = 1.0
    replica_wait_s: float = 900.0


class Dispatcher:
    """One population's dispatch. `choose` says how many of so many available replicas to use.

    `on_replicas(available, used)` is told whenever either changes; used 0 means that the job waits.
    """

    def __init__(
        self,
        pool: ReplicaPool,
        settings: DispatchSettings,
        *,
        choose: Callable[[int], int],
        on_replicas: Callable[[int, int], None] = lambda available, used: None,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._choose = choose
        self._on_replicas = on_replicas
        self._work: deque[_Work] = deque()
        self._wake = asyncio.Condition()
        self._results: asyncio.Queue[list[RowResult] | BaseException] = asyncio.Queue()
        self._lanes: dict[str, list[asyncio.Task[None]]] = {}
        self._chunk_id = 0
        self._open_rows = 0

    async def run(
        self,
        prompts: Sequence[tuple[int, ...]],
        *,
        label_ids: tuple[int, ...] = (),
        sampling: Sampling | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[list[RowResult], None]:
        """Yield results as chunks finish, in any order, until each of `prompts` was reported once.

        Raises EngineFailed when there was no replica for `replica_wait_s`. Leaving the loop early cancels what runs.
        """
        order = sorted(range(len(prompts)), key=prompts.__getitem__)  # neighbours share the longest prefixes
        size = self._settings.chunk_rows
        self._work = deque(_Work(order[i : i + size]) for i in range(0, len(order), size))
        self._open_rows = len(prompts)
        template = Chunk(0, (), label_ids, sampling or Sampling(), priority)
        supervisor = asyncio.create_task(self._supervise(prompts, template))
        try:
            while self._open_rows:
                results = await self._results.get()
                if isinstance(results, BaseException):
                    raise results
                self._open_rows -= len(results)
                yield results
        finally:
            await _cancel([supervisor, *(lane for lanes in self._lanes.values() for lane in lanes)])

    async def _supervise(self, prompts: Sequence[tuple[int, ...]], template: Chunk) -> None:
        """Keep lanes open to the chosen replicas: drop those that left, take those that came."""
        loop = asyncio.get_running_loop()
        last_seen = loop.time()
        told = (-1, -1)
        try:
            while True:
                running = await self._running()
                ended = {name for name, lanes in self._lanes.items() if any(lane.done() for lane in lanes)}
                for gone in (self._lanes.keys() - running) | ended:
                    await _cancel(self._lanes.pop(gone))
                wanted = self._choose(len(running)) if running else 0
                for replica_id in sorted(running - self._lanes.keys())[: max(0, wanted - len(self._lanes))]:
                    self._lanes[replica_id] = [
                        asyncio.create_task(self._lane(replica_id, prompts, template))
                        for _ in range(self._settings.chunks_in_flight)
                    ]
                now = (len(running), len(self._lanes))
                if now != told:
                    self._on_replicas(*now)
                    told = now
                if self._lanes:
                    last_seen = loop.time()
                elif reason := await self._pool.failure():
                    raise EngineFailed(f"the replicas cannot start: {reason}")
                elif loop.time() - last_seen > self._settings.replica_wait_s:
                    raise EngineFailed(f"no replica was ready for {self._settings.replica_wait_s:g} s")
                await asyncio.sleep(self._settings.refresh_s)
        except (Exception, asyncio.CancelledError) as error:
            self._results.put_nowait(error if isinstance(error, Exception) else EngineFailed("dispatch was stopped"))
            raise

    async def _running(self) -> set[str]:
        try:
            return {replica.replica_id for replica in await self._pool.replicas()}
        except Exception as error:  # no answer is not a no: what works goes on, and a lost replica fails its chunks
            logger.warning("cannot ask for replicas: %s", error)
            return set(self._lanes)

    async def _lane(self, replica_id: str, prompts: Sequence[tuple[int, ...]], template: Chunk) -> None:
        """Pull work for one replica, more slowly the more chunks fail on it in a row."""
        failures = 0
        while True:
            work = await self._next_work()
            self._chunk_id += 1
            chunk = Chunk(
                self._chunk_id,
                tuple(prompts[i] for i in work.indices),
                template.label_ids,
                template.sampling,
                template.priority,
            )
            try:
                result = await self._pool.run(replica_id, chunk)
                if len(result.completions) != len(work.indices):
                    raise EngineFailed(f"{len(result.completions)} answers to {len(work.indices)} prompts")
            except (Exception, asyncio.CancelledError) as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    await self._give_back([work])
                    raise
                # Not ours: Ray raises CancelledError also for a call that was cancelled on the replica.
                reason = f"{replica_id}: {_first_line(error)}"
                logger.warning("chunk %d failed on %s", chunk.chunk_id, reason)
                await self._retry(work, reason)
                failures += 1
                await asyncio.sleep(min(self._settings.refresh_s * 2**failures, MAX_BACKOFF_S))
                continue
            failures = 0
            await self._finish(work, result)

    async def _next_work(self) -> _Work:
        async with self._wake:
            await self._wake.wait_for(lambda: len(self._work) > 0)
            return self._work.popleft()

    async def _give_back(self, work: Sequence[_Work]) -> None:
        async with self._wake:
            self._work.extendleft(reversed(work))
            self._wake.notify_all()

    async def _retry(self, work: _Work, reason: str) -> None:
        """Queue the work again, or report its rows as failed when it had all its attempts."""
        again = work.after(reason)
        if again[0].attempts < self._settings.max_attempts:
            await self._give_back(again)
            return
        failed = Completion(status="failed", error="; ".join(again[0].errors))
        self._results.put_nowait([RowResult(i, failed, None, again[0].attempts) for i in work.indices])

    async def _finish(self, work: _Work, result: ChunkResult) -> None:
        done, retry = [], []
        for index, completion in zip(work.indices, result.completions, strict=True):
            if completion.status == "failed":
                retry.append((index, completion.error or "unknown error"))
            else:
                done.append(RowResult(index, completion, result.replica, work.attempts + 1))
        if done:
            self._results.put_nowait(done)
        for index, error in retry:
            await self._retry(_Work([index], work.attempts, work.errors), f"{result.replica.replica_id}: {error}")


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: it was put into the results, or no longer matters


def _first_line(error: BaseException) -> str:
    """The cause that a remote call carried, without Ray's traceback around it."""
    cause = getattr(error, "cause", None)
    text = str(cause if isinstance(cause, BaseException) else error).strip()
    return f"{type(error).__name__}: {text.splitlines()[-1] if text else ''}"[:300]
