"""What one client's request cannot do to the others': numbers that no row can use, and answers without an end."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest

from serve_app.driver import deployment
from serve_app.driver.deployment import build_app
from serve_app.driver.http.bounded import JsonBodies
from tests.driver.kit import MakeJobs, serve, spec
from tests.fakes import FakePool

ROWS = {"rows": [{"custom_id": "1", "prompt": "x"}]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "1e999"), ("temperature", "Infinity"), ("temperature", "NaN"), ("temperature", "5"),
        ("temperature", "-1"), ("top_p", "0"), ("top_p", "1.1"), ("seed", str(2**63)), ("seed", str(-(2**63) - 1)),
        ("priority", str(2**64)), ("priority", "0"), ("priority", "-999"), ("priority", "1001"),
        ("max_tokens", str(10**21)), ("max_tokens", "0"), ("metadata", '{"x": 1e999}'),
        ("rows", '[{"prompt": "\\ud800"}]'),
        ("price", '{"replica_hour": 1e999}'),
    ],
)  # fmt: skip
async def test_a_number_that_no_row_can_use_is_refused_with_the_job(
    make_jobs: MakeJobs, field: str, value: str
) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    body = msgspec.json.encode({**ROWS, field: msgspec.Raw(value.encode())})
    async with await serve(jobs, pool) as client:
        answer = await client.post("/", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith(field)
        assert (await client.get("/")).json()["data"] == []


@pytest.mark.parametrize("field", ["timeout_s", "concurrency", "batch_rows", "max_retries"])
async def test_so_is_one_of_a_provider(make_jobs: MakeJobs, field: str) -> None:
    pool = FakePool(["a"])
    provider = {"base_url": "https://p.example/v1", "model": "m", field: 10**15}
    async with await serve(await make_jobs(pool), pool) as client:
        answer = await client.post("/", json={**ROWS, "provider": provider})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"provider.{field}")


@pytest.mark.parametrize("where", [{"metadata": {"x": 10**30}}, {"rows": [{"prompt": "x", "n": 10**30}]}])
async def test_a_number_of_a_callers_own_breaks_nothing(make_jobs: MakeJobs, where: dict[str, Any]) -> None:
    pool = FakePool(["a"])
    async with await serve(await make_jobs(pool), pool) as client:
        answer = await client.post("/", json={**ROWS, **where})
        assert answer.status_code in (201, 400), answer.text


async def test_a_json_body_has_a_bound_far_below_an_uploads(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "JsonBodies", partial(JsonBodies, 100))
    pool = FakePool(["a"])
    async with await serve(await make_jobs(pool), pool) as client:
        answer = await client.post("/", json={"rows": [{"prompt": "x" * 100}]})
        assert answer.status_code == 413
        assert "as a file" in answer.json()["error"]["message"]
        file = ("rows.csv", b"prompt\n" + b"x" * 200)
        assert (await client.post("/", data={"spec": "{}"}, files={"file": file})).status_code == 201


@pytest.mark.parametrize("after", ["-1", str(2**64), "x"])
async def test_an_offset_that_is_none_is_refused(make_jobs: MakeJobs, after: str) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(1))
    async with await serve(jobs, pool) as client:
        answer = await client.get(f"/{job_id}/results", params={"after": after})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


async def test_so_many_event_streams_may_be_open_and_the_next_is_told_to_come_back(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "MOST_EVENT_STREAMS", 2)
    pool = FakePool([])
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(1))
    app = build_app(jobs, pool)
    begun = asyncio.Semaphore(0)

    async def listen() -> None:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                begun.release()

        scope = {"type": "http", "method": "GET", "path": f"/{job_id}/events", "query_string": b"", "headers": []}
        await app(scope, receive, send)

    listeners = [asyncio.create_task(listen()) for _ in range(2)]
    for _ in listeners:
        await begun.acquire()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        refused = await client.get(f"/{job_id}/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert (await client.get(f"/{job_id}")).status_code == 200
        listeners.pop().cancel()
        await asyncio.sleep(0)
        await jobs.cancel(job_id)
        assert (await client.get(f"/{job_id}/events")).status_code == 200
    for listener in listeners:
        listener.cancel()
