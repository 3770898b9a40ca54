"""One batch from validation to its end.

Knows the batch's record and its job's state. Does not know how rows are run (`jobs/job.py`). A job that fails after its
rows were counted (no replica, no store, another model) is resumed until the window is over. A batch fails only when its
file is gone or holds no request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, cast

import msgspec

from serve_app.driver.batches.files import FileStore, output_file_id
from serve_app.driver.batches.output import BatchOutput, Lost
from serve_app.driver.batches.record import Asked, BatchError, End, Record, batch_id_of, change, load
from serve_app.driver.jobs.job import ACTIVE
from serve_app.driver.jobs.registry import Jobs
from serve_app.driver.sources.requests import RequestRows
from serve_app.driver.sources.source import open_source
from serve_app.driver.store.store import JobStore
from serve_app.driver.threads import finish_in_thread
from serve_app.errors import BadSettings, JobConflict, JobNotFound, NoSuchFile, StoreError
from serve_app.spec import JobSpec, JobState, JobStatus

logger = logging.getLogger(__name__)

POLL_S = 0.5
# Between resumes of a failed job, doubling.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
# The first ones tell enough of a million bad lines.
MOST_ERRORS = 100
# OpenAI's codes for rows without an answer.
LOST: dict[End, Lost] = {
    "expired": Lost("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": Lost("batch_cancelled", "This request was not executed before the batch was cancelled."),
    "failed": Lost("batch_failed", "This request was not executed before the batch failed."),
}

Errors = tuple[BatchError, ...]


class BatchRun:
    """Follows one batch. `now` gives the Unix time in seconds."""

    def __init__(
        self, job: JobStore, asked: Asked, record: Record, *, jobs: Jobs, files: FileStore, now: Callable[[], float]
    ) -> None:
        self.asked = asked
        self.record = record
        self._job = job
        self._jobs = jobs
        self._files = files
        self._now = now
        self._changing = asyncio.Lock()
        self._pause_s = FIRST_PAUSE_S
        self._resume_at = -math.inf

    async def execute(self) -> None:
        """Return when the batch has ended or was deleted."""
        while not self.record.ended:
            try:
                await self._advance()
            except JobNotFound:
                return
            except (StoreError, JobConflict) as error:  # temporary, or another driver still holds the job
                logger.warning("%s: %s", self._job.job_id, error)
            except Exception:
                logger.exception("defect in %s", self._job.job_id)
                await asyncio.sleep(LONGEST_PAUSE_S)
            await asyncio.sleep(POLL_S)

    async def cancel(self) -> None:
        """Have it stop soon and keep what is done. Raises JobConflict once it is finalizing or has ended."""

        def cancelling(record: Record) -> Record:
            if record.finalizing_at is not None or record.end is not None or record.ended:
                state = record.end or record.status
                raise JobConflict(f"batch '{batch_id_of(self._job.job_id)}' is {state}: it cannot stop")
            return first(record, cancelling_at=self._time())

        async with self._changing:
            self.record = await finish_in_thread(change, self._job, cancelling)

    async def _advance(self) -> None:
        running = any(run.job.job_id == self._job.job_id for run in self._jobs.running())
        if not running:  # another driver may have it, and may have been told to stop
            _, self.record = await asyncio.to_thread(load, self._job)
            if self.record.ended:
                return
        status = await self._jobs.status(self._job.job_id)
        if status.total and self.record.in_progress_at is None:
            async with self._changing:
                await self._note(in_progress_at=self._time())
        if running:
            if self.record.cancelling_at is not None or self._window_over():
                with suppress(JobConflict):  # it ended meanwhile
                    await self._jobs.cancel(self._job.job_id)
        elif end := self._end(status):
            await self._finish(end)
        elif status.state == "failed":
            await self._after_failure(status)
        elif status.state.active:  # its driver died, or the store was away, before it ran
            await self._resume("nobody runs it")

    def _end(self, status: JobStatus) -> End | None:
        """How the batch ends, now that its job does not run here; None if it does not yet."""
        if self.record.end is not None:  # its driver died as it wrote the files
            return self.record.end
        if self.record.cancelling_at is not None:
            return "cancelled"
        if status.state.complete or 0 < status.total == status.done:
            return "completed"
        if self._window_over():
            return "expired"
        return "cancelled" if status.state == "cancelled" else None

    async def _after_failure(self, status: JobStatus) -> None:
        if errors := await asyncio.to_thread(self._errors, counted=status.total > 0):
            await self._finish("failed", errors)
        else:
            await self._resume(status.message)

    async def _resume(self, reason: str) -> None:
        if time.monotonic() >= self._resume_at:
            logger.warning("%s goes on: %s", self._job.job_id, reason)
            self._resume_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            await self._jobs.resume(self._job.job_id)

    # --- the end ---

    async def _finish(self, end: End, errors: Errors = ()) -> None:
        async with self._changing:
            if end == "completed":
                await self._note(finalizing_at=self._time())
            await finish_in_thread(self._write_end, end, errors)

    def _write_end(self, end: End, errors: Errors) -> None:
        """Decide on the end, write the files that belong to it, and note both. Of two drivers the first one decides."""
        with self._job.lock():
            record = change(self._job, partial(decided, end=end, errors=errors))
            if not record.ended and record.end is not None:
                end = record.end
                with suppress(JobConflict):  # nobody is to resume it, unless it has ended
                    self._job.update(expected=ACTIVE, state=JobState.CANCELLED, message=f"the batch has {end}")
                written = self._write_files(end) if record.in_progress_at is not None or end != "failed" else {}
                ended: dict[str, Any] = {**written, f"{end}_at": self._time()}
                record = change(self._job, partial(first, **ended))
            self.record = record

    def _write_files(self, end: End) -> dict[str, Any]:
        """Write the files; returns fields of the record."""
        batch_id = batch_id_of(self._job.job_id)
        output = BatchOutput(batch_id, self._job, self._files, expires_after_s=self.asked.output_expires_after_s)
        answers_id, errors_id = output_file_id(batch_id, "output"), output_file_id(batch_id, "error")
        completed = output.write_answers(answers_id)
        failed = output.write_errors(errors_id, self._source, LOST.get(end))
        return {
            "output_file_id": answers_id if completed else None,
            "error_file_id": errors_id if failed else None,
            "completed": completed,
            "failed": failed,
            "usage": output.usage,
        }

    def _errors(self, *, counted: bool) -> Errors:
        """Why the input is unusable as a whole, if it is. Rows that were `counted` held a request."""
        try:
            self._files.get(self.asked.input_file_id)
        except NoSuchFile as error:
            return (BatchError("input_file_not_found", str(error)),)
        if counted:
            return ()
        try:
            source = self._source()
            source.count()
        except BadSettings as error:
            with suppress(BadSettings):
                problems = self._source().problems()
                found = tuple(BatchError(p.code, p.message, p.param, p.line) for p in islice(problems, MOST_ERRORS))
                return found or (BatchError("empty_file", "the input file is empty: give a request a line"),)
            return (BatchError("invalid_input_file", str(error)),)
        return ()

    def _source(self) -> RequestRows:
        spec = JobSpec.model_validate(self._job.spec())
        return cast("RequestRows", open_source(spec, folder_url=self._job.folder))

    # --- time and record ---

    def _window_over(self) -> bool:
        return self._now() >= self.asked.expires_at

    def _time(self) -> int:
        return int(self._now())

    async def _note(self, **reached: Any) -> None:
        self.record = await finish_in_thread(change, self._job, partial(first, **reached))


def first(record: Record, **values: Any) -> Record:
    """The record with the values whose fields were empty. One that has ended stays as it is."""
    new = {} if record.ended else {name: value for name, value in values.items() if not getattr(record, name)}
    return msgspec.structs.replace(record, **new)


def decided(record: Record, end: End, errors: Errors) -> Record:
    """The record with its end, if it has none."""
    return record if record.end is not None else first(record, end=end, errors=errors)
