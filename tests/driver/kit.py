"""Jobs over fake replicas: what is asked and what was committed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from serve_app.driver.deployment import build_app
from serve_app.driver.jobs.registry import Jobs
from serve_app.spec import JobSpec
from tests.fakes import FakePool, rows

MakeJobs = Callable[..., Awaitable[Jobs]]
DONE = ("completed", "completed_with_failures", "cancelled", "failed")


def spec(count: int, **values: Any) -> JobSpec:
    inline = [{"custom_id": row.custom_id, "messages": list(row.messages)} for row in rows(count)]
    return JobSpec.model_validate({"rows": inline, **values})


async def finished(jobs: Jobs, job_id: str) -> Any:
    while (await jobs.status(job_id)).state not in DONE or jobs.running():
        await asyncio.sleep(0.01)
    return await jobs.status(job_id)


def ids(jobs: Jobs, job_id: str) -> list[str]:
    return [outcome.custom_id for outcome in jobs.job(job_id).outcomes()]


async def committed(jobs: Jobs, job_id: str, count: int) -> None:
    while (await jobs.status(job_id)).done < count:
        await asyncio.sleep(0.002)


async def serve(jobs: Jobs, pool: FakePool) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(build_app(jobs, pool)), base_url="http://test")
