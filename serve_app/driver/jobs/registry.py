"""All jobs of a driver: submitting, running, going on after a restart, cancelling, and their status."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import BinaryIO

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.driver.jobs.job import JobRun, MakePart, status_of
from serve_app.driver.jobs.plan import replicas_wanted
from serve_app.driver.sources.files import write_rows
from serve_app.driver.sources.source import check_ids, open_source
from serve_app.driver.store.store import JobStore, Store
from serve_app.errors import BadSettings, JobConflict, JobNotFound, ServeAppError, StoreError, TakenOver
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec, JobState, JobStatus

logger = logging.getLogger(__name__)

# Where the rows of a request are kept in the job's folder.
INPUT = "input.jsonl"
# Names of routes, here and at usual servers, which a job cannot have: it would be read instead of them.
RESERVED_IDS = {"replicas", "health", "ping", "metrics", "docs", "redoc"}
# How often a driver asks for a job that another one still holds, as while one version replaces another.
TAKE_OVER_S = 2.0
RECOVER_TRIES = 30
CANCEL_WAIT_S = 30.0


class Jobs:
    """All jobs of a store. Up to `max_running_jobs` run at once, in the order in which they came."""

    def __init__(self, settings: DriverSettings, dispatcher: Dispatcher, remote: MakePart | None = None) -> None:
        self.settings = settings
        self._dispatcher = dispatcher
        self._remote = remote
        self._store = Store(settings.store)
        self._turns = asyncio.Semaphore(settings.max_running_jobs)
        self._runs: dict[str, JobRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()
        self._creating = threading.Lock()

    async def recover(self) -> list[str]:
        """Go on with every job that was queued or running when its driver ended; their ids.

        What cannot be read is tried again for a while; then it is left as it is, and the list of jobs says why.
        """
        begun: list[str] = []
        for _ in range(RECOVER_TRIES):
            found, problem = await asyncio.to_thread(self._unfinished)
            for job in found:
                if job.job_id not in self._tasks and await self._try_to_start(job):
                    begun.append(job.job_id)
            if not problem:
                break
            logger.warning("cannot look for unfinished jobs: %s", problem)
            await asyncio.sleep(TAKE_OVER_S)
        return begun

    def _unfinished(self) -> tuple[list[JobStore], str]:
        """Jobs to go on with, the oldest first, and why some may be missing."""
        found, problem = [], ""
        try:
            ids = self._store.jobs()
        except StoreError as error:
            return [], str(error)
        for job_id in reversed(ids):
            try:
                job = self._store.open(job_id)
                if job.manifest()["state"].active:
                    found.append(job)
            except JobNotFound:  # deleted meanwhile
                pass
            except (StoreError, LookupError) as error:
                problem = f"{job_id}: {error}"
        return found, problem

    async def _try_to_start(self, job: JobStore) -> bool:
        try:
            await self._start(job)
        except (ServeAppError, ValueError) as error:
            logger.error("cannot go on with job %s: %s", job.job_id, error)
            return False
        return True

    async def submit(self, spec: JobSpec, upload: tuple[str, BinaryIO] | None = None) -> str:
        """Write the job down and start it, both or none, though the caller may leave meanwhile; returns its id.

        Raises BadSettings for a population that cannot be read, JobConflict for a job id in use, StoreError.
        """

        async def whole() -> str:
            job = await asyncio.to_thread(self._prepare, spec, upload)
            try:
                await self._start(job)
            except Exception:
                await asyncio.to_thread(self._store.delete, job.job_id)
                raise
            return job.job_id

        return await asyncio.shield(asyncio.create_task(whole()))

    def _prepare(self, spec: JobSpec, upload: tuple[str, BinaryIO] | None) -> JobStore:
        """Write the job down as queued. `upload` is (name, file) to be read as its source."""
        job_id = spec.job_id or _new_id(spec.workload)
        if job_id in RESERVED_IDS:
            raise BadSettings(f"'{job_id}' is the name of a route: give another", field="job_id")
        kept = spec
        if spec.rows:
            kept = spec.model_copy(update={"rows": (), "source": f"job:{INPUT}", "format": "jsonl"})
        with self._creating:
            job = self._store.create(job_id, kept.model_dump(mode="json"))
        try:
            if upload is not None:
                name, file = upload
                with job.open_output(name) as output:
                    while block := file.read(1 << 20):
                        output.write(block)
            elif spec.rows:
                with job.open_output(INPUT) as output:
                    write_rows(spec.rows, output)
            source = open_source(kept, folder_url=job.folder, reach=self.settings.source_reach)
            if spec.rows:  # few enough to say at once what is wrong with them
                check_ids(source)
        except BaseException:
            self._store.delete(job_id)
            raise
        return job

    async def resume(self, job_id: str) -> None:
        """Run the rows that have no committed outcome. A running or completed job is left as it is."""

        def queue() -> JobStore | None:
            job = self._store.open(job_id)
            state = job.manifest()["state"]
            if state.resumable:  # written down: the next driver must know it too
                job.update(expected=[state], state=JobState.QUEUED, message="")
            return job if state.active or state.resumable else None

        if job_id not in self._tasks and (job := await asyncio.to_thread(queue)) is not None:
            await self._start(job)

    async def cancel(self, job_id: str) -> None:
        """Stop a job; what it committed stays. Raises JobNotFound, or JobConflict when it is not running."""
        task = self._tasks.get(job_id)
        if task is None:
            await asyncio.to_thread(self._store.open, job_id)
            raise JobConflict(f"job '{job_id}' is not running")
        self._cancelled.add(job_id)
        if not task.cancelling():  # once is enough: a second one could cut the last commit short
            task.cancel()
        # With the store away the end cannot be written; the job says so, and whoever cancelled need not wait.
        await asyncio.wait([task], timeout=CANCEL_WAIT_S)

    async def delete(self, job_id: str) -> None:
        """Remove a job and all its files. Raises JobNotFound, or JobConflict while it runs."""
        if job_id in self._tasks:
            raise JobConflict(f"job '{job_id}' is running: cancel it first")
        await asyncio.to_thread(self._store.delete, job_id)

    async def close(self) -> None:
        """Stop running jobs as they are: the next driver goes on with them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def list(self) -> list[JobStatus]:
        """Every job in the store, newest first."""
        ids = await asyncio.to_thread(self._store.jobs)
        found = await asyncio.gather(*map(self.status, ids), return_exceptions=True)
        statuses = []
        for job_id, status in zip(ids, found, strict=True):
            if isinstance(status, JobStatus):
                statuses.append(status)
            elif not isinstance(status, JobNotFound):  # that one was deleted meanwhile
                statuses.append(JobStatus(id=job_id, state=JobState.FAILED, message=f"cannot be read: {status}"))
        return statuses

    async def status(self, job_id: str) -> JobStatus:
        """The job's state now. Raises JobNotFound."""
        if run := self._runs.get(job_id):
            return run.status()
        return await asyncio.to_thread(lambda: status_of(self._store.open(job_id)))

    def running(self) -> tuple[JobRun, ...]:
        """The jobs that run or wait for their turn."""
        return tuple(self._runs.values())

    def replicas_wanted(self) -> int:
        """How many replicas the running jobs want together; 0 without any."""
        rows = sum(run.rows_left() for run in self._runs.values())
        low, high = self.settings.min_rows_per_replica, self.settings.max_rows_per_replica
        return replicas_wanted(rows, len(self._dispatcher.workers), min_rows=low, max_rows=high) if rows else 0

    def job(self, job_id: str) -> JobStore:
        """The job's files. Raises JobNotFound."""
        return self._store.open(job_id)

    async def _start(self, job: JobStore) -> None:
        run = await asyncio.to_thread(JobRun, job, self._store, self.settings, self._dispatcher, self._remote)
        if job.job_id in self._tasks:
            return
        self._runs[job.job_id] = run
        # In a context of its own: see `Dispatcher._start`.
        task = asyncio.create_task(self._in_turn(run), context=contextvars.Context())
        self._tasks[job.job_id] = task
        task.add_done_callback(lambda _: (self._tasks.pop(job.job_id, None), self._runs.pop(job.job_id, None)))

    async def _in_turn(self, run: JobRun) -> None:
        try:
            async with self._turns:
                await self._with_lock(run)
        except asyncio.CancelledError:
            if run.job.job_id in self._cancelled:  # and not the driver that ends
                await run.end(JobState.CANCELLED, "cancelled by request")
        except Exception:
            logger.exception("job %s ended by a defect", run.job.job_id)
        finally:
            self._cancelled.discard(run.job.job_id)

    async def _with_lock(self, run: JobRun) -> None:
        while True:
            with ExitStack() as held:
                try:
                    held.enter_context(run.job.lock())
                except JobConflict as error:
                    logger.info("%s", error)
                else:
                    state = (await asyncio.to_thread(run.job.manifest))["state"]
                    if state.active:  # the other driver may have ended it
                        await self._execute(run)
                    return
            await asyncio.sleep(TAKE_OVER_S)

    async def _execute(self, run: JobRun) -> None:
        try:
            await run.execute()
        except Exception as raised:
            error = raised
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            if isinstance(error, TakenOver):
                logger.warning("job %s: %s", run.job.job_id, error)
            elif run.job.job_id in self._cancelled:  # whatever else went wrong on the way
                await run.end(JobState.CANCELLED, f"cancelled by request; {_reason(error)}")
            else:
                await run.end(JobState.FAILED, _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, ServeAppError):
        return str(error)
    logger.error("a job failed by a defect", exc_info=error)  # it must not look alive
    return f"{type(error).__name__}: {error}"


def _new_id(workload: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", workload.partition("/")[0].lower()).strip("-")[:40] or "job"
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
