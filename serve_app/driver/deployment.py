"""The driver's deployment: the control routes under `/v1/populations`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import PurePath
from typing import Any

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response, StreamingResponse
from ray import serve
from sse_starlette import EventSourceResponse
from starlette.datastructures import UploadFile

from serve_app.dispatch.pool import ReplicaPool
from serve_app.dispatch.render import make_renderer
from serve_app.dispatch.replicas import HandlePool
from serve_app.driver.batches.registry import BatchRegistry
from serve_app.driver.demand import Demand
from serve_app.driver.http.allowed import check_allowed
from serve_app.driver.http.bounded import (
    MOST_DOWNLOADS,
    MOST_EVENT_STREAMS,
    MOST_UPLOADS,
    Bounded,
    JsonBodies,
    Uploads,
    in_turns,
)
from serve_app.driver.http.control_app import control_app
from serve_app.driver.http.results import MEDIA_TYPES, stream_joined, stream_results
from serve_app.driver.jobs.job import make_dispatcher
from serve_app.driver.jobs.registry import Jobs
from serve_app.driver.metrics import PopulationMetrics
from serve_app.driver.runner import RemotePart
from serve_app.driver.sources.files import UPLOADED
from serve_app.driver.store.retries import log_retries
from serve_app.driver.threads import use_large_thread_pool
from serve_app.errors import BadSettings, JobNotFound, ServeAppError
from serve_app.settings import DRIVER_DEPLOYMENT, DriverSettings
from serve_app.spec import JobSpec, JobStatus

# Puts keys and limits around an ASGI application.
Guard = Callable[[Any], Any]
EVENT_EVERY_S = 0.5
# Above any population; numbers in JSON are exact up to here.
MOST_ROWS = 2**53
# Lists and objects in each other; pydantic writes no more than 255.
MOST_NESTED = 100
# Period of telling jobs' demand for replicas: a cluster at zero starts within it.
DEMAND_EVERY_S = 1.0
logger = logging.getLogger(__name__)


def build_app(jobs: Jobs, pool: ReplicaPool) -> FastAPI:
    """The control routes over `jobs`. Errors have OpenAI's shape."""
    app = control_app("serve_app populations")
    streams, downloads = asyncio.Semaphore(MOST_EVENT_STREAMS), asyncio.Semaphore(MOST_DOWNLOADS)
    uploads, bodies = Uploads(MOST_UPLOADS), JsonBodies()

    @app.post("", status_code=201, include_in_schema=False)
    @app.post("/", status_code=201, openapi_extra={"requestBody": _REQUEST_BODY})
    async def submit(request: Request) -> JobStatus:
        """Queue a population: a JSON body, or a form of `spec` (the JSON) and `file` (CSV, JSONL, Parquet or Excel)."""
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            async with uploads.form(request) as form:
                spec, file = form.get("spec", "{}"), form.get("file")
                if not isinstance(file, UploadFile) or not isinstance(spec, str):
                    raise BadSettings("give the form fields spec (JSON) and file")
                name = f"{UPLOADED}{PurePath(file.filename or 'rows.jsonl').name}"
                parsed = await asyncio.to_thread(_spec, spec, source=f"job:{name}")
                check_allowed(parsed, jobs.settings)
                return await jobs.status(await jobs.submit(parsed, (name, file.file)))
        # In a thread: a large body takes its time, in which the loop hands rows to replicas.
        async with bodies.read(request) as body:
            parsed = await asyncio.to_thread(_spec, body)
            if parsed.source.startswith("job:"):
                raise BadSettings(
                    "'job:' names an uploaded file; send the file in a form, or give a path or URL", field="source"
                )
            check_allowed(parsed, jobs.settings)
            return await jobs.status(await jobs.submit(parsed))

    @app.get("", include_in_schema=False)
    @app.get("/")
    async def jobs_list() -> dict[str, Any]:
        """All jobs, newest first."""
        return {"object": "list", "data": await jobs.list()}

    @app.get("/replicas")
    async def replicas() -> dict[str, Any]:
        """The replicas that can work now, and why none will if Serve gave up on them."""
        running = [msgspec.to_builtins(replica) for replica in await pool.replicas()]
        return {"object": "list", "data": running, "failure": "" if running else await pool.failure()}

    @app.get("/{job_id}")
    async def status(job_id: str) -> JobStatus:
        """State, counts, rate, ETA and cost."""
        return await jobs.status(job_id)

    @app.get("/{job_id}/events")
    async def events(job_id: str) -> Response:
        """The status as server-sent events (`status`), whenever it changes, until the job ends (`end`)."""
        await jobs.status(job_id)
        return Bounded(EventSourceResponse(_events(jobs, job_id)), streams)

    @app.get("/{job_id}/results")
    def results(
        job_id: str, format: str = "jsonl", after: int = Query(0, ge=0, le=MOST_ROWS), inputs: bool = False
    ) -> Response:
        """Committed outcomes in the order of commit, also while the job runs; `after` leaves out the first ones.

        With `inputs` the rows of the data in its order, with its columns, what was asked, and the answers.
        """
        if inputs and after:
            raise BadSettings("with inputs, rows come in the order of the data: leave it out", field="after")
        job = jobs.job(job_id)
        reach = jobs.settings.source_reach
        lines = stream_joined(job, format, reach) if inputs else stream_results(job, format, after=after)
        name = f'attachment; filename="{job_id}.{format}"'
        headers = {"content-disposition": name}
        return Bounded(StreamingResponse(in_turns(lines), media_type=MEDIA_TYPES[format], headers=headers), downloads)

    @app.post("/{job_id}/resume")
    async def resume(job_id: str) -> JobStatus:
        """Run the rows that have no outcome."""
        await jobs.resume(job_id)
        return await jobs.status(job_id)

    @app.post("/{job_id}/cancel")
    async def cancel(job_id: str) -> JobStatus:
        """Stop the job and keep what is committed."""
        await jobs.cancel(job_id)
        return await jobs.status(job_id)

    @app.delete("/{job_id}", status_code=204)
    async def delete(job_id: str) -> Response:
        """Remove the job and its results."""
        await jobs.delete(job_id)
        return Response(status_code=204)

    return app


_REQUEST_BODY = {"content": {"application/json": {"schema": JobSpec.model_json_schema()}}, "required": True}


def _spec(body: str | bytes, **known: Any) -> JobSpec:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadSettings(f"the request's body is not JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise BadSettings("the request's body is not a JSON object")
    spec = JobSpec.parse({**fields, **known})
    for name, value in fields.items():
        if nested(value) > MOST_NESTED:
            raise BadSettings(f"nested deeper than {MOST_NESTED} lists and objects", field=name)
        try:  # what Python reads and no store could keep: infinities, lone surrogates
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise BadSettings(f"not JSON in UTF-8: {error}", field=name) from error
    return spec


def nested(value: Any) -> int:
    """How many lists and objects of JSON are in each other, at most."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
    return depth


async def _events(jobs: Jobs, job_id: str) -> AsyncIterator[dict[str, str]]:
    last = ""
    while True:
        with suppress(JobNotFound):
            status = await jobs.status(job_id)
            if (data := status.model_dump_json()) != last:
                last = data
                yield {"event": "status", "data": data}
            if status.state.active:
                await asyncio.sleep(EVENT_EVERY_S)
                continue
        yield {"event": "end", "data": last}
        return


@serve.deployment(
    name=DRIVER_DEPLOYMENT,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 0},
    # Serve replaces a frozen driver after three of these, and populations stand still until then (Serve: 30).
    health_check_period_s=5,
    health_check_timeout_s=15,
    logging_config={"enable_access_log": False},  # clients poll
)
@serve.ingress()
class Driver:
    """Owns the jobs. Needs no device; sends rows to replicas by name."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: DriverSettings, guard: Guard = lambda app: app
    ) -> None:
        """`guard` is put around the routes: keys and limits, which the driver does not know."""
        use_large_thread_pool()
        log_retries()
        self._guard = guard
        self._pool = HandlePool.of(settings.replicas)
        self._dispatcher = await make_dispatcher(self._pool, settings).__aenter__()
        remote = partial(RemotePart, settings) if settings.max_runners > 1 else None
        self._jobs = Jobs(settings, self._dispatcher, remote)
        self._batches = BatchRegistry(settings.store, self._jobs)
        self._recovering = asyncio.create_task(self._recover())
        self._warming = asyncio.create_task(self._warm_up())
        self._demand = Demand(settings.replicas)
        self._metrics = PopulationMetrics()
        self._reporting = asyncio.create_task(self._report_demand())

    async def _recover(self) -> None:
        # Beside each other: a job that cannot be read keeps no batch waiting.
        await asyncio.gather(self._jobs.recover(), self._batches.recover())

    async def batches(self, call: str, *arguments: Any, **named: Any) -> Any:
        """For the deployment of `/v1/batches`: calls a method of `batches.routes.BatchService`. What it refuses is
        returned: Serve logs and counts what is raised as a fault of the driver's.
        """
        try:
            return await getattr(self._batches, call)(*arguments, **named)
        except ServeAppError as error:
            return error

    async def _warm_up(self) -> None:
        """Load the tokenizer before the first job asks for it."""
        with suppress(ServeAppError):  # no replica: a job will say why
            replica = await self._dispatcher.replica()
            await asyncio.to_thread(make_renderer, replica.engine)

    async def _report_demand(self) -> None:
        """While jobs run, want replicas for them, and find out why they are missing."""
        while True:
            try:
                wanted = self._jobs.replicas_wanted()
                self._demand.set(wanted)
                self._metrics.set([run.status() for run in self._jobs.running()], wanted)
                short = len(self._dispatcher.workers) < wanted
                self._dispatcher.note = await self._demand.waiting_reason() if short else ""
            except Exception as error:  # the controller does not answer: go on without the reason
                logger.warning("cannot ask why replicas are missing: %s", error)
            await asyncio.sleep(DEMAND_EVERY_S)

    def __serve_build_asgi_app__(self) -> Any:
        return self._guard(build_app(self._jobs, self._pool))

    async def __del__(self) -> None:
        self._reporting.cancel()
        self._recovering.cancel()
        self._warming.cancel()
        await self._batches.close()
        await self._jobs.close()
        await self._dispatcher.__aexit__()
