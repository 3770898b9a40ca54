"""A job's way through its driver: it waits for its turn, its lock and its upload, runs, and its end is written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack

from serve_app.driver.jobs.job import JobRun, write_end
from serve_app.driver.store.retries import while_store_is_away
from serve_app.driver.store.store import JobStore
from serve_app.driver.threads import finish_in_thread
from serve_app.errors import JobConflict, JobNotFound, ServeAppError, TakenOver
from serve_app.spec import JobState

logger = logging.getLogger(__name__)

# How often a driver asks for a job that another one still holds, or whose rows are still being written.
TAKE_OVER_S = 2.0
# An upload that has not ended by then was cut short by the end of its driver. Counted from this driver's first look:
# the clock of a day may be set meanwhile, and differs between hosts.
UPLOAD_WAIT_S = 3600.0


class Turn:
    """One job in one driver. `make` reads what was asked; `turns` are those that all jobs share.

    `run` is None until the job could be read. Cancel `task`, with `cancelled` set, to end the job, and without to leave
    it to the next driver.
    """

    def __init__(self, job: JobStore, make: Callable[[], JobRun], turns: asyncio.Semaphore) -> None:
        self.job = job
        self.run: JobRun | None = None
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False
        self._make = make
        self._turns = turns
        self._uploading_since: float | None = None

    async def prepare(self) -> None:
        """Read what was asked. Raises StoreError, JobNotFound, and ValueError for what another version has written."""
        self.run = await asyncio.to_thread(self._make)

    async def execute(self) -> None:
        """Return when the job has ended, however long its store is away or another driver holds it."""
        try:
            if self.run is None:
                await while_store_is_away(self.prepare)
            while not await self._tried():
                await asyncio.sleep(TAKE_OVER_S)  # without the turn, which another job can use
        except asyncio.CancelledError:
            if self.cancelled:  # and not the driver that ends
                await self._end(JobState.CANCELLED, "cancelled by request")
        except JobNotFound as error:
            logger.info("%s", error)
        except Exception:
            logger.exception("job %s ended by a defect", self.job.job_id)

    async def _tried(self) -> bool:
        """Run the job to its end, or return False if it cannot begin yet."""
        async with self._turns:
            with ExitStack() as held:
                try:
                    await while_store_is_away(lambda: finish_in_thread(held.enter_context, self.job.lock()))
                except JobConflict as error:
                    logger.info("%s", error)
                    return False
                manifest = await while_store_is_away(lambda: asyncio.to_thread(self.job.manifest))
                if not manifest["state"].active:  # the other driver may have ended it
                    return True
                if manifest.get("uploading"):
                    self._uploading_since = self._uploading_since or time.monotonic()
                    if time.monotonic() - self._uploading_since < UPLOAD_WAIT_S:
                        if self.run is not None:
                            self.run.hold("its rows are still being uploaded")
                        return False
                    await self._end(JobState.FAILED, "source: its upload was cut short: submit it again")
                    return True
                await self._execute()
        return True

    async def _execute(self) -> None:
        assert self.run is not None
        try:
            await self.run.execute()
        except Exception as raised:
            error = raised
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            if isinstance(error, TakenOver):
                logger.warning("job %s: %s", self.job.job_id, error)
            elif self.cancelled:  # whatever else went wrong on the way
                await self._end(JobState.CANCELLED, f"cancelled by request; {_reason(error)}")
            else:
                await self._end(JobState.FAILED, _reason(error))

    async def _end(self, state: JobState, message: str) -> None:
        if self.run is not None:
            await self.run.end(state, message)
        else:
            await write_end(self.job, state, message, {})


def _reason(error: Exception) -> str:
    if isinstance(error, ServeAppError):
        return str(error)
    logger.error("a job failed by a defect", exc_info=error)  # it must not look alive
    return f"{type(error).__name__}: {error}"
