"""All jobs of a driver: submitting, running, going on after a restart, cancelling, and their status."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import threading
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.driver.jobs.job import ACTIVE, JobRun, MakePart, status_of
from serve_app.driver.jobs.plan import replicas_wanted
from serve_app.driver.jobs.turn import Turn
from serve_app.driver.sources.files import write_rows
from serve_app.driver.sources.generated import Generated
from serve_app.driver.sources.source import check_ids, check_size, open_source
from serve_app.driver.store.retries import while_store_is_away
from serve_app.driver.store.store import JobStore, Store
from serve_app.errors import BadSettings, JobConflict, JobNotFound, StoreError
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec, JobState, JobStatus

logger = logging.getLogger(__name__)

# Where the rows of a request are kept in the job's folder.
INPUT = "input.jsonl"
# Names of routes, here and at usual servers, which a job cannot have: it would be read instead of them.
RESERVED_IDS = {"replicas", "health", "ping", "metrics", "docs", "redoc"}
CANCEL_WAIT_S = 30.0
CLEAR_WAIT_S = 5.0


class Jobs:
    """All jobs of a store. Up to `max_running_jobs` run at once, in the order in which they came."""

    def __init__(self, settings: DriverSettings, dispatcher: Dispatcher, remote: MakePart | None = None) -> None:
        self.settings = settings
        self._dispatcher = dispatcher
        self._remote = remote
        self._store = Store(settings.store)
        self._turns = asyncio.Semaphore(settings.max_running_jobs)
        self._active: dict[str, Turn] = {}
        self._clearing: set[asyncio.Task[None]] = set()
        self._creating = threading.Lock()

    async def recover(self) -> list[str]:
        """Go on with every job that was queued or running when its driver ended, the oldest first; their ids.

        Returns once all could be read; those that can be read begin at once.
        """
        left: list[str] | None = None
        begun: list[str] = []

        async def go_on() -> None:
            nonlocal left
            if left is None:
                left = await asyncio.to_thread(self._store.jobs, unreadable=True)
                left.reverse()
            unread, problem = [], None
            for job_id in left:
                try:
                    if await self._recover_one(job_id):
                        begun.append(job_id)
                except StoreError as error:
                    unread.append(job_id)
                    problem = StoreError(f"{job_id}: {error}")
            left = unread
            if problem is not None:
                raise problem

        await while_store_is_away(go_on)
        return begun

    async def _recover_one(self, job_id: str) -> bool:
        """Start it if it has not ended. Raises StoreError."""
        if job_id in self._active:
            return False

        def unfinished() -> JobStore | None:
            job = self._store.open(job_id)
            return job if job.manifest()["state"].active else None

        try:
            job = await asyncio.to_thread(unfinished)
            if job is not None:
                await self._start(job)
        except JobNotFound:  # deleted meanwhile
            return False
        except (LookupError, ValueError) as error:  # as of another version
            logger.error("cannot go on with job %s: %s", job_id, error)
            return False
        return job is not None

    async def submit(self, spec: JobSpec, upload: tuple[str, BinaryIO] | None = None) -> str:
        """Write the job down and start it, both or none, though the caller may leave meanwhile; returns its id.

        Raises BadSettings for a population that cannot be read, JobConflict for a job id in use, StoreError.
        """

        async def whole() -> str:
            job = await asyncio.to_thread(self._create, spec, upload)
            try:
                await asyncio.to_thread(self._fill, job, spec, upload)
                await self._start(job)
            except Exception:
                await self._clear(job.job_id)
                raise
            return job.job_id

        return await asyncio.shield(asyncio.create_task(whole()))

    def _create(self, spec: JobSpec, upload: tuple[str, BinaryIO] | None) -> JobStore:
        """Write the job down as queued. While its rows are not there no driver runs it."""
        job_id = spec.job_id or _new_id(spec.workload)
        if job_id in RESERVED_IDS:
            raise BadSettings(f"'{job_id}' is the name of a route: give another", field="job_id")
        kept = spec
        if spec.rows:
            kept = spec.model_copy(update={"rows": (), "source": f"job:{INPUT}", "format": "jsonl"})
        with self._creating:
            return self._store.create(job_id, kept.model_dump(mode="json"), uploading=bool(upload or spec.rows))

    def _fill(self, job: JobStore, spec: JobSpec, upload: tuple[str, BinaryIO] | None) -> None:
        """Write the job's rows down. `upload` is (name, file) to be read as its source."""
        if upload is not None:
            name, file = upload
            with job.open_output(name) as output:
                while block := file.read(1 << 20):
                    output.write(block)
        elif spec.rows:
            with job.open_output(INPUT) as output:
                write_rows(spec.rows, output)
        source = open_source(
            JobSpec.model_validate(job.spec()), folder_url=job.folder, reach=self.settings.source_reach
        )
        if spec.rows:  # few enough to say at once what is wrong with them
            check_ids(source)
        if isinstance(source, Generated):
            check_size(source.size, self.settings.max_rows)
        if upload is not None or spec.rows:
            job.update(uploading=False)

    async def _clear(self, job_id: str) -> None:
        """Delete a job that was not submitted after all; with the store away, later."""
        clearing = asyncio.create_task(
            while_store_is_away(lambda: asyncio.to_thread(self._store.delete, job_id)), context=contextvars.Context()
        )
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)
        await asyncio.wait([clearing], timeout=CLEAR_WAIT_S)
        if clearing.done() and not clearing.cancelled():
            clearing.exception()  # it is gone; the caller is told what went wrong before

    async def resume(self, job_id: str) -> None:
        """Run the rows that have no committed outcome. A running or completed job is left as it is."""

        def queue() -> JobStore | None:
            job = self._store.open(job_id)
            state = job.manifest()["state"]
            if state.resumable:  # written down: the next driver must know it too
                job.update(expected=[state], state=JobState.QUEUED, message="")
            return job if state.active or state.resumable else None

        if job_id not in self._active and (job := await asyncio.to_thread(queue)) is not None:
            await self._start(job)

    async def cancel(self, job_id: str) -> None:
        """Stop a job; what it committed stays. Raises JobNotFound, or JobConflict when it is not running."""
        turn = self._active.get(job_id)
        if turn is None or turn.task is None:  # another driver may run it, and will see it
            try:
                await asyncio.to_thread(self._mark_cancelled, job_id)
            except JobConflict as error:
                raise JobConflict(f"job '{job_id}' is not running") from error
            return
        turn.cancelled = True
        await asyncio.sleep(0)  # a task that is cancelled before its first step would not write its end
        if not turn.task.cancelling():  # once is enough: a second one could cut the last commit short
            turn.task.cancel()
        # With the store away the end cannot be written; the job says so, and whoever cancelled need not wait.
        await asyncio.wait([turn.task], timeout=CANCEL_WAIT_S)

    def _mark_cancelled(self, job_id: str) -> None:
        job = self._store.open(job_id)
        job.update(expected=ACTIVE, state=JobState.CANCELLED, message="cancelled by request")

    async def delete(self, job_id: str) -> None:
        """Remove a job and all its files. Raises JobNotFound, or JobConflict while it runs."""
        if job_id in self._active:
            raise JobConflict(f"job '{job_id}' is running: cancel it first")
        await asyncio.to_thread(self._store.delete, job_id)

    async def close(self) -> None:
        """Stop running jobs as they are: the next driver goes on with them."""
        tasks = [turn.task for turn in self._active.values() if turn.task is not None] + list(self._clearing)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def list(self) -> list[JobStatus]:
        """Every job in the store, newest first."""
        ids = await asyncio.to_thread(self._store.jobs, unreadable=True)
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
        if (turn := self._active.get(job_id)) and turn.run is not None:
            return turn.run.status()
        return await asyncio.to_thread(lambda: status_of(self._store.open(job_id)))

    def running(self) -> tuple[JobRun, ...]:
        """The jobs that run or wait for their turn."""
        return tuple(turn.run for turn in self._active.values() if turn.run is not None)

    def replicas_wanted(self) -> int:
        """How many replicas the running jobs want together; 0 without any."""
        rows = sum(run.rows_left() for run in self.running())
        low, high = self.settings.min_rows_per_replica, self.settings.max_rows_per_replica
        return replicas_wanted(rows, len(self._dispatcher.workers), min_rows=low, max_rows=high) if rows else 0

    def job(self, job_id: str) -> JobStore:
        """The job's files. Raises JobNotFound."""
        return self._store.open(job_id)

    async def _start(self, job: JobStore) -> None:
        """Have the job run. With the store away it is read as soon as it can be."""
        make = partial(JobRun, job, self._store, self.settings, self._dispatcher, self._remote)
        turn = Turn(job, make, self._turns)
        try:
            await turn.prepare()
        except JobNotFound:
            raise
        except StoreError as error:
            logger.warning("job %s begins once it can be read: %s", job.job_id, error)
        if job.job_id in self._active:
            return
        self._active[job.job_id] = turn
        # In a context of its own: see `Dispatcher._start`.
        turn.task = asyncio.create_task(turn.execute(), context=contextvars.Context())
        turn.task.add_done_callback(lambda _: self._active.pop(job.job_id))


def _new_id(workload: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", workload.partition("/")[0].lower()).strip("-")[:40] or "job"
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
