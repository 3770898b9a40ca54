"""All jobs of a driver: submitting, running, going on after a restart, cancelling, and their status."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import BinaryIO

from serve_app.driver.dispatch import Dispatcher
from serve_app.driver.job import JobRun, MakePart, status_of
from serve_app.driver.plan import replicas_wanted
from serve_app.driver.sources import check_ids, open_source, write_rows
from serve_app.driver.spec import FINISHED, JobSpec, JobStatus
from serve_app.driver.store import JobStore, Store
from serve_app.errors import JobConflict, ServeAppError
from serve_app.settings import DriverSettings

logger = logging.getLogger(__name__)

# Where the rows of a request are kept in the job's folder.
INPUT = "input.jsonl"
# How often a driver asks for a job that another one still holds, as while one version replaces another.
TAKE_OVER_S = 2.0


class Jobs:
    """All jobs of a store. Up to `max_running_jobs` run at once, in the order in which they came."""

    def __init__(self, settings: DriverSettings, dispatcher: Dispatcher, remote: MakePart | None = None) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._remote = remote
        self._store = Store(settings.store)
        self._turns = asyncio.Semaphore(settings.max_running_jobs)
        self._runs: dict[str, JobRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()

    def recover(self) -> list[str]:
        """Go on with every job that was queued or running when its driver ended; their ids."""
        found = []
        for job_id in reversed(self._store.jobs()):
            job = self._store.open(job_id)
            if job.manifest()["state"] in ("queued", "running"):
                self._start(job)
                found.append(job_id)
        return found

    def submit(self, spec: JobSpec, upload: tuple[str, BinaryIO] | None = None) -> str:
        """Write the job down and start it; returns its id."""
        job_id = self.prepare(spec, upload)
        self.start(job_id)
        return job_id

    def prepare(self, spec: JobSpec, upload: tuple[str, BinaryIO] | None = None) -> str:
        """Write the job down as queued; returns its id. `upload` is (name, file) to be read as its source.

        May run in a thread, as a population may be large. Raises BadSettings for a population that cannot be read,
        JobConflict for a job id in use, StoreError.
        """
        job_id = spec.job_id or _new_id(spec.workload)
        kept = spec
        if spec.rows:
            kept = spec.model_copy(update={"rows": (), "source": f"job:{INPUT}", "format": "jsonl"})
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
            source = open_source(kept, folder_url=job.folder)
            if spec.rows:  # few enough to say at once what is wrong with them
                check_ids(source)
        except BaseException:
            self._store.delete(job_id)
            raise
        return job_id

    def start(self, job_id: str) -> None:
        """Run a job that was prepared."""
        self._start(self._store.open(job_id))

    def resume(self, job_id: str) -> None:
        """Run the rows that have no committed outcome. A running or finished job is left as it is."""
        job = self._store.open(job_id)
        if job_id not in self._tasks and job.manifest()["state"] not in FINISHED:
            self._start(job)

    async def cancel(self, job_id: str) -> None:
        """Stop a job; what it committed stays. Raises JobNotFound, or JobConflict when it is not running."""
        self._store.open(job_id)
        task = self._tasks.get(job_id)
        if task is None:
            raise JobConflict(f"job '{job_id}' is not running")
        self._cancelled.add(job_id)
        if not task.cancelling():  # once is enough: a second one could cut the last commit short
            task.cancel()
        await asyncio.wait([task])

    async def delete(self, job_id: str) -> None:
        """Remove a job and all its files. Raises JobNotFound, or JobConflict while it runs."""
        self._store.open(job_id)
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

    def list(self) -> list[JobStatus]:
        """Every job in the store, newest first."""
        return [self.status(job_id) for job_id in self._store.jobs()]

    def status(self, job_id: str) -> JobStatus:
        """The job's state now. Raises JobNotFound."""
        if run := self._runs.get(job_id):
            return run.status()
        return status_of(self._store.open(job_id))

    def running(self) -> tuple[JobRun, ...]:
        """The jobs that run or wait for their turn."""
        return tuple(self._runs.values())

    def replicas_wanted(self) -> int:
        """How many replicas the running jobs want together; 0 without any."""
        rows = sum(run.rows_left() for run in self._runs.values())
        low, high = self._settings.min_rows_per_replica, self._settings.max_rows_per_replica
        return replicas_wanted(rows, len(self._dispatcher.workers), min_rows=low, max_rows=high) if rows else 0

    def job(self, job_id: str) -> JobStore:
        """The job's files. Raises JobNotFound."""
        return self._store.open(job_id)

    def _start(self, job: JobStore) -> None:
        run = JobRun(job, self._store, self._settings, self._dispatcher, self._remote)
        self._runs[job.job_id] = run
        # In a context of its own: see `Dispatcher._start`.
        task = asyncio.create_task(self._in_turn(run), context=contextvars.Context())
        self._tasks[job.job_id] = task
        task.add_done_callback(lambda _: (self._tasks.pop(job.job_id, None), self._runs.pop(job.job_id, None)))

    async def _in_turn(self, run: JobRun) -> None:
        try:
            async with self._turns:
                await self._to_its_end(run)
        except asyncio.CancelledError:
            if run.job.job_id in self._cancelled:
                await run.end("cancelled", "cancelled by request")
        finally:
            self._cancelled.discard(run.job.job_id)

    async def _to_its_end(self, run: JobRun) -> None:
        while True:
            with ExitStack() as held:
                try:
                    held.enter_context(run.job.lock())
                except JobConflict as error:
                    logger.info("%s", error)
                else:
                    return await _execute(run)
            await asyncio.sleep(TAKE_OVER_S)


async def _execute(run: JobRun) -> None:
    try:
        await run.execute()
    except ExceptionGroup as errors:
        await run.end("failed", _reason(errors.exceptions[0]))
    except Exception as error:
        await run.end("failed", _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, ServeAppError):
        return str(error)
    logger.error("a job failed by a defect", exc_info=error)  # it must not look alive
    return f"{type(error).__name__}: {error}"


def _new_id(workload: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", workload.partition("/")[0].lower()).strip("-")[:40] or "job"
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
