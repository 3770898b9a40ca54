"""OpenAI's batches: jobs whose rows are the requests of an uploaded file, and whose answers become files.

Knows which batches there are. Does not know HTTP (see `routes.py`), nor how one runs (`run.py`).
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Any

import msgspec

from serve_app.driver.batches.files import FileStore
from serve_app.driver.batches.record import (
    FIELD,
    JOB_ID,
    Asked,
    BatchRequest,
    Record,
    batch_object,
    job_id_of,
    load,
    new_job_id,
)
from serve_app.driver.batches.run import BatchRun
from serve_app.driver.jobs.registry import Jobs
from serve_app.driver.store.retries import while_store_is_away
from serve_app.errors import BadSettings, JobConflict, JobNotFound, NoSuchFile, StoreError
from serve_app.spec import JobSpec
from serve_app.storage.filesystem import Folder

PURPOSE = "batch"
WORKLOAD = "openai-batch"
# How much longer than its batch an input is kept: unanswered requests are listed from it.
INPUT_KEPT_S = 24 * 3600


class BatchRegistry:
    """All batches of a store; see `routes.BatchService`.

    `jobs` runs them; `now` gives the Unix time in seconds.
    """

    def __init__(
        self, store_url: str, jobs: Jobs, *, files: FileStore | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._root = Folder.at(store_url)
        self._jobs = jobs
        self._files = files or FileStore(store_url, now=now)
        self._now = now
        self._runs: dict[str, BatchRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def recover(self) -> None:
        """Follow every batch that had not ended when its driver did. Tries until the store can be read."""
        await while_store_is_away(self._recover_all)

    async def _recover_all(self) -> None:
        problem: StoreError | None = None
        for job_id in await asyncio.to_thread(self._job_ids):
            try:
                await self._recover_one(job_id)
            except StoreError as error:  # the others need not wait for it
                problem = error
        if problem is not None:
            raise problem

    async def _recover_one(self, job_id: str) -> None:
        if job_id in self._runs:
            return
        try:
            asked, record = await asyncio.to_thread(lambda: load(self._jobs.job(job_id)))
        except JobNotFound:  # deleted, or only named like a batch
            return
        if not record.ended:
            self._follow(job_id, asked, record)

    async def create(self, request: BatchRequest) -> dict[str, Any]:
        """Store a batch and start it; returns the batch object.

        Raises BadSettings for an input file that is missing or has another purpose, StoreError.
        """
        try:
            stored = await asyncio.to_thread(self._files.get, request.input_file_id)
        except NoSuchFile as error:
            raise BadSettings(str(error), field="input_file_id") from error
        if stored.purpose != PURPOSE:
            raise BadSettings(f"its purpose is '{stored.purpose}': upload it with '{PURPOSE}'", field="input_file_id")
        created_at = int(self._now())
        asked = Asked(
            request.input_file_id,
            request.endpoint,
            request.completion_window,
            created_at,
            created_at + request.window_s,
            request.metadata,
            request.output_expires_after.seconds if request.output_expires_after else None,
        )
        spec = JobSpec(
            job_id=new_job_id(),
            workload=WORKLOAD,
            source=self._files.url(stored.id),
            format="jsonl",
            endpoint=request.endpoint,
            metadata={FIELD: msgspec.to_builtins(asked)},
        )
        # Read until the batch ends, and once more for unanswered requests.
        await asyncio.to_thread(self._files.keep_until, stored.id, asked.expires_at + INPUT_KEPT_S)
        job_id = await self._jobs.submit(spec)
        self._follow(job_id, asked, Record())
        return await self._object(job_id)

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        """The batch object. Raises JobNotFound."""
        return await self._object(job_id_of(batch_id))

    async def cancel(self, batch_id: str) -> dict[str, Any]:
        """Have the batch stop soon; returns the batch object. Raises JobNotFound, JobConflict when it has ended."""
        job_id = job_id_of(batch_id)
        batch = await self._object(job_id)
        await self._recover_one(job_id)  # a driver that just started may not follow it yet
        run = self._runs.get(job_id)
        if run is None:
            raise JobConflict(f"batch '{batch_id}' is {batch['status']}: it cannot be cancelled")
        await run.cancel()
        return await self._object(job_id)

    async def page(self, *, after: str | None = None, limit: int = 20) -> tuple[list[dict[str, Any]], bool]:
        """Up to `limit` batch objects, newest first, those after `after`, and whether there are more."""
        ids = sorted(await asyncio.to_thread(self._job_ids), reverse=True)
        if after is not None:
            last = job_id_of(after)
            ids = [job_id for job_id in ids if job_id < last]
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), limit + 1):
            page = ids[start : start + limit + 1]
            read = await asyncio.gather(*map(self._object, page), return_exceptions=True)
            for one in read:
                if isinstance(one, BaseException) and not isinstance(one, JobNotFound):
                    raise one
            found += [one for one in read if isinstance(one, dict)]
            if len(found) > limit:
                return found[:limit], True
        return found, False

    async def close(self) -> None:
        """Stop following; the next driver goes on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _job_ids(self) -> list[str]:
        return [info.base_name for info in self._root.list() if JOB_ID.fullmatch(info.base_name)]

    def _follow(self, job_id: str, asked: Asked, record: Record) -> None:
        job = self._jobs.job(job_id)
        run = BatchRun(job, asked, record, jobs=self._jobs, files=self._files, now=self._now)
        self._runs[job_id] = run
        # Own context: see `Dispatcher._start`.
        task = asyncio.create_task(run.execute(), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._runs.pop(job_id, None))

    async def _object(self, job_id: str) -> dict[str, Any]:
        try:
            if run := self._runs.get(job_id):
                asked, record = run.asked, run.record
            else:
                asked, record = await asyncio.to_thread(lambda: load(self._jobs.job(job_id)))
            return batch_object(job_id, asked, record, await self._jobs.status(job_id))
        except JobNotFound as error:
            raise JobNotFound(f"no batch 'batch_{job_id.removeprefix('batch-')}' in {self._root.url}") from error
