"""Parts of a large job in processes of their own, for populations that one process cannot feed.

A runner is a Ray actor without devices that runs one part (`jobs.part.PartRun`) and commits to the part's own log. It
dies with its driver; the next driver makes new ones, which go on from what is committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import ray
from ray.exceptions import RayActorError

from serve_app.dispatch.pool import ReplicaPool
from serve_app.dispatch.replicas import HandlePool
from serve_app.driver.jobs.job import make_dispatcher
from serve_app.driver.jobs.part import PartRun, Span
from serve_app.driver.jobs.reuse import Reuse
from serve_app.driver.jobs.tally import Tally
from serve_app.driver.sources.source import open_source
from serve_app.driver.store.retries import log_retries, while_store_is_away
from serve_app.driver.store.store import Store
from serve_app.driver.threads import use_large_thread_pool
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, Finished, ReplicaInfo
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec

logger = logging.getLogger(__name__)
T = TypeVar("T")

POLL_S = 0.5
# Deaths in a row, without a commit in between, after which another start would not help.
MAX_DEATHS = 3
STOP_TIMEOUT_S = 15.0


class PoolShare:
    """Every `of`-th replica of a pool, beginning with `number`, so that a job's runners do not queue behind each other;
    all, where there are fewer replicas than runners."""

    def __init__(self, pool: ReplicaPool, number: int, of: int) -> None:
        self._pool = pool
        self._number = number
        self._of = of

    async def replicas(self) -> list[ReplicaInfo]:
        found = sorted(await self._pool.replicas(), key=lambda replica: replica.replica_id)
        return found[self._number :: self._of] if len(found) >= self._of else found

    async def failure(self) -> str:
        return await self._pool.failure()

    def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        return self._pool.run(replica_id, chunk)


class Progress(NamedTuple):
    """A part's counts so far, and what it waits for."""

    tally: Tally
    message: str


class Runner:
    """Body of the actor."""

    def __init__(self, settings: DriverSettings, job_id: str, number: int, parts: int, span: Span) -> None:
        self._settings = settings
        self._job_id = job_id
        self._number = number
        self._parts = parts
        self._span = span
        self._part: PartRun | None = None
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Run the part to its end."""
        self._task = asyncio.create_task(self._run())
        await self._task

    async def _run(self) -> None:
        use_large_thread_pool()
        log_retries()
        store = Store(self._settings.store)
        job = await self._read(lambda: store.open(self._job_id))
        spec = JobSpec.model_validate(await self._read(job.spec))
        reuse = await self._read(lambda: Reuse(store, self._job_id, spec.workload)) if spec.reuse else None
        pool = PoolShare(HandlePool.of(self._settings.replicas), self._number, self._parts)
        async with make_dispatcher(pool, self._settings) as dispatcher:
            self._part = PartRun(
                spec,
                open_source(spec, folder_url=job.folder, reach=self._settings.source_reach),
                job.part(self._number),
                dispatcher,
                self._settings,
                span=self._span,
                limit=lambda available: available,
                pin=job.pin,
                reuse=reuse,
            )
            await self._part.execute()

    async def _read(self, call: Callable[[], T]) -> T:
        patience_s = self._settings.store_wait_s
        return await while_store_is_away(lambda: asyncio.to_thread(call), patience_s=lambda: patience_s)

    async def progress(self) -> Progress:
        """How far the part is."""
        return Progress(self._part.tally, self._part.message) if self._part else Progress(Tally(), "starting")

    async def stop(self) -> None:
        """Commit what is finished and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class RemotePart:
    """See `jobs.job.Part`: a part in an actor, which is replaced when it dies."""

    def __init__(self, settings: DriverSettings, job_id: str, number: int, parts: int, span: Span) -> None:
        self._arguments = (settings, job_id, number, parts, span)
        self.tally = Tally()
        self.message = "starting a runner"

    async def execute(self) -> None:
        deaths = 0
        while True:
            done = self.tally.done
            try:
                return await self._run_once()
            except RayActorError as error:
                deaths = 1 if self.tally.done > done else deaths + 1
                logger.warning("runner of part %d died: %s", self._arguments[2], error)
                if deaths >= MAX_DEATHS:
                    raise EngineFailed(
                        f"the runner of part {self._arguments[2]} died {deaths} times in a row: {error}"
                    ) from error

    async def _run_once(self) -> None:
        runner = ray.remote(num_cpus=0, max_restarts=0)(Runner).remote(*self._arguments)
        running = asyncio.wrap_future(runner.run.remote().future())
        try:
            while not running.done():
                await asyncio.wait([running], timeout=POLL_S)
                with suppress(RayActorError):
                    self.tally, self.message = await runner.progress.remote()
            with suppress(RayActorError):
                self.tally, self.message = await runner.progress.remote()
            try:
                running.result()
            except ray.exceptions.RayTaskError as error:  # our own error, raised there
                raise error.cause if isinstance(error.cause, Exception) else error from None
        except asyncio.CancelledError:
            with suppress(RayActorError, TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await runner.stop.remote()
            raise
        finally:
            ray.kill(runner)
