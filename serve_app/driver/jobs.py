"""All jobs of a driver: submitting, running in turn, resuming, cancelling, and their status."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
from collections import Counter
from datetime import UTC, datetime

from serve_app.driver.dispatch import ReplicaPool
from serve_app.driver.run import Run
from serve_app.driver.spec import FINISHED, JobSpec, JobStatus
from serve_app.driver.store import JobStore, Store
from serve_app.errors import BadSettings, JobConflict, ServeAppError
from serve_app.schema import Row
from serve_app.settings import DriverSettings

logger = logging.getLogger(__name__)


class Jobs:
    """All jobs of a driver; they run one after another, in the order in which they came."""

    def __init__(self, settings: DriverSettings, pool: ReplicaPool) -> None:
        self._settings = settings
        self._pool = pool
        self._store = Store(settings.store)
        self._turn = asyncio.Lock()
        self._runs: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def submit(self, spec: JobSpec) -> str:
        """Write the job down and queue it; returns its id.

        Raises BadSettings for a `custom_id` given twice, JobConflict for a job id in use, StoreError.
        """
        (name, times), *_ = Counter(row.custom_id for row in spec.rows).most_common(1)
        if times > 1:
            raise BadSettings(f"rows: custom_id {name!r} is given {times} times; results are found by it")
        job_id = spec.job_id or _new_id(spec.workload)
        rows = [Row(row.custom_id, row.messages) for row in spec.rows]
        job = self._store.create(job_id, spec.model_dump(exclude={"rows"}), rows)
        self._start(job_id, job)
        return job_id

    def resume(self, job_id: str) -> None:
        """Run the rows that have no committed outcome. A running or finished job is left as it is."""
        job = self._store.open(job_id)
        if job_id not in self._tasks and job.manifest()["state"] not in FINISHED:
            self._start(job_id, job)

    async def cancel(self, job_id: str) -> None:
        """Stop a job; what it committed stays. Raises JobNotFound, or JobConflict when it is not running."""
        self._store.open(job_id)
        task = self._tasks.get(job_id)
        if task is None:
            raise JobConflict(f"job '{job_id}' is not running")
        if not task.cancelling():  # once is enough: a second one could cut the last commit short
            task.cancel()
        await asyncio.wait([task])

    def list(self) -> list[JobStatus]:
        """Every job in the store, newest first."""
        return [self.status(job_id) for job_id in self._store.jobs()]

    def status(self, job_id: str) -> JobStatus:
        """The job's state now. Raises JobNotFound."""
        if run := self._runs.get(job_id):
            return run.status
        job = self._store.open(job_id)
        manifest, spec = job.manifest(), job.spec()
        # Written as running, and nobody runs it: the driver that did is gone.
        state = "interrupted" if manifest["state"] in ("queued", "running") else manifest["state"]
        known = {"id": job_id, "state": state, "message": manifest["message"], "metadata": spec["metadata"]}
        return JobStatus(**{**manifest["report"], **known})

    def job(self, job_id: str) -> JobStore:
        """The job's files. Raises JobNotFound."""
        return self._store.open(job_id)

    def _start(self, job_id: str, job: JobStore) -> None:
        run = Run(job_id, job, self._settings, self._pool)
        self._runs[job_id] = run
        # In a context of its own: one made in an HTTP request would give all calls of the job that request's id,
        # and Serve's router tells calls apart by it (seen: calls never routed, router spinning).
        task = asyncio.create_task(self._in_turn(run), context=contextvars.Context())
        self._tasks[job_id] = task
        task.add_done_callback(lambda _: (self._tasks.pop(job_id, None), self._runs.pop(job_id, None)))

    async def _in_turn(self, run: Run) -> None:
        try:
            async with self._turn:
                with run.job.lock():
                    await _to_its_end(run)
        except JobConflict as error:  # another driver runs it, so its state is not ours to write
            logger.error("%s", error)
        except asyncio.CancelledError:
            run.end("cancelled", "cancelled before its turn")


async def _to_its_end(run: Run) -> None:
    try:
        await run.execute()
    except asyncio.CancelledError:
        run.end("cancelled", "cancelled by request")
    except ServeAppError as error:
        run.end("failed", str(error))
    except Exception as error:  # a defect of ours must not leave a job that looks alive
        logger.exception("job %s failed", run.status.id)
        run.end("failed", f"{type(error).__name__}: {error}")


def _new_id(workload: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", workload.partition("/")[0].lower()).strip("-")[:40] or "job"
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
