"""The driver's deployment: the control routes under `/v1/populations`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve

from serve_app.driver.dispatch import ReplicaPool
from serve_app.driver.jobs import Jobs
from serve_app.driver.pool import HandlePool
from serve_app.driver.spec import JobSpec, JobStatus
from serve_app.errors import BadSettings, JobConflict, JobNotFound, ServeAppError
from serve_app.settings import REPLICA_DEPLOYMENT, REPLICAS_APP, DriverSettings

# First match counts.
STATUS_CODES: tuple[tuple[type[ServeAppError], int, str], ...] = (
    (JobNotFound, 404, "not_found_error"),
    (JobConflict, 409, "conflict_error"),
    (BadSettings, 400, "invalid_request_error"),
    (ServeAppError, 500, "server_error"),
)


def build_app(jobs: Jobs, pool: ReplicaPool) -> FastAPI:
    """The control routes over `jobs`. Errors have OpenAI's shape."""
    app = FastAPI(title="serve_app populations")

    @app.exception_handler(ServeAppError)
    async def on_error(request: Request, error: ServeAppError) -> JSONResponse:
        code, kind = next((code, kind) for cls, code, kind in STATUS_CODES if isinstance(error, cls))
        return JSONResponse({"error": {"message": str(error), "type": kind, "code": code}}, status_code=code)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return await on_error(request, BadSettings("; ".join(problems[:5])))

    @app.post("/", status_code=201)
    async def submit(spec: JobSpec) -> JobStatus:
        """Queue a population."""
        return jobs.status(jobs.submit(spec))

    @app.get("/")
    async def jobs_list() -> dict[str, Any]:
        """All jobs, newest first."""
        return {"object": "list", "data": jobs.list()}

    @app.get("/replicas")
    async def replicas() -> dict[str, Any]:
        """The replicas that can work now, and why none will if Serve gave up on them."""
        running = [asdict(replica) for replica in await pool.replicas()]
        return {"object": "list", "data": running, "failure": "" if running else await pool.failure()}

    @app.get("/{job_id}")
    async def status(job_id: str) -> JobStatus:
        """State, counts, rate and ETA."""
        return jobs.status(job_id)

    @app.get("/{job_id}/results")
    def results(job_id: str) -> StreamingResponse:
        """Committed outcomes as JSON lines, also while the job runs."""
        job = jobs.job(job_id)

        def lines() -> Iterator[str]:
            for outcome in job.outcomes():
                yield outcome.to_json() + "\n"

        return StreamingResponse(lines(), media_type="application/jsonl")

    @app.post("/{job_id}/resume")
    async def resume(job_id: str) -> JobStatus:
        """Run the rows that have no outcome."""
        jobs.resume(job_id)
        return jobs.status(job_id)

    @app.post("/{job_id}/cancel")
    async def cancel(job_id: str) -> JobStatus:
        """Stop the job and keep what is committed."""
        await jobs.cancel(job_id)
        return jobs.status(job_id)

    return app


@serve.deployment(
    name="Driver",
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 0},
    logging_config={"enable_access_log": False},  # clients poll
)
@serve.ingress()
class Driver:
    """Owns the jobs. Needs no device; dispatches to the replicas by handle."""

    def __init__(self, settings: DriverSettings) -> None:
        handle = serve.get_deployment_handle(REPLICA_DEPLOYMENT, REPLICAS_APP)
        self._pool = HandlePool(handle)
        self._jobs = Jobs(settings, self._pool)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._jobs, self._pool)
