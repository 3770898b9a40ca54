"""What is held in memory while much is sent, asked or answered."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.requests import Request

from serve_app.driver import deployment
from serve_app.driver.batches import routes
from serve_app.driver.batches.files import FileStore
from serve_app.driver.batches.routes import files_app
from serve_app.driver.deployment import build_app
from serve_app.driver.http.bounded import JsonBodies
from serve_app.driver.http.joined import BLOCK_CHARACTERS
from serve_app.driver.http.results import stream_joined, stream_results
from serve_app.driver.sources import files as source_files
from serve_app.driver.store.store import JobStore, Store
from serve_app.driver.store.table import BATCH_BYTES
from serve_app.schema import Outcome
from serve_app.spec import JobSpec
from tests.driver.kit import MakeJobs, finished, serve
from tests.fakes import FakePool

KIB, MIB = 1 << 10, 1 << 20


def job_of(folder: Path, texts: dict[str, str], *, rows: int, width: int = 1) -> JobStore:
    """A job of `rows` rows, of which those of `texts` are answered with them, a hundred at a commit."""
    spec = JobSpec(source="job:input.jsonl", format="jsonl", prompt="{text}")
    job = Store(str(folder)).create("job", spec.model_dump(mode="json"))
    with job.open_output("input.jsonl") as file:
        for number in range(rows):
            file.write(json.dumps({"custom_id": str(number), "text": "x" * width}).encode() + b"\n")
    log = job.part(0)
    log.begin()
    answers = [_outcome(custom_id, text) for custom_id, text in texts.items()]
    for start in range(0, len(answers), 100):
        log.append(answers[start : start + 100], {})
    return job


def _outcome(custom_id: str, text: str) -> Outcome:
    value = {"text": text, "finish_reason": "stop"}
    return Outcome(
        custom_id=custom_id, content_hash="0" * 64, status="ok", value=value, error=None, attempts=1, replica="a",
        model="m", engine_version="1", simulated=True, prompt_tokens=1, cached_tokens=0, completion_tokens=1,
        latency_ms=1.0, finished_at="2026-11-28T00:00:00.000+00:00",
    )  # fmt: skip


def grown(blocks: Iterator[bytes]) -> int:
    """Bytes by which this process grew at most."""
    process = psutil.Process()
    before = process.memory_info().rss
    return max(process.memory_info().rss - before for _ in blocks)


def test_answers_that_come_before_their_row_wait_on_disk(tmp_path: Path) -> None:
    texts = {str(number): f"{number:08d}" * KIB for number in range(1, 20_000)}  # 160 MB; the first row has none
    job = job_of(tmp_path, texts, rows=20_000)
    del texts
    assert grown(stream_joined(job, "jsonl")) < 80 * MIB
    rows = [json.loads(line) for block in stream_joined(job, "jsonl") for line in block.splitlines()]
    assert rows[0]["status"] is None
    assert all(row["answer_text" if "answer_text" in row else "text"].startswith(f"{i:08d}") for i, row in
               enumerate(rows[1:], 1))  # fmt: skip


def test_a_block_beside_inputs_has_so_many_bytes_whatever_the_rows(tmp_path: Path) -> None:
    job = job_of(tmp_path, {}, rows=30, width=MIB)
    sizes = [len(block) for block in stream_joined(job, "jsonl")]
    assert len(sizes) > 5
    assert max(sizes) < BLOCK_CHARACTERS + 4 * MIB


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_so_has_a_block_of_results(tmp_path: Path, form: str) -> None:
    job = job_of(tmp_path, {str(number): "x" * 200 * KIB for number in range(100)}, rows=100)
    sizes = [len(block) for block in stream_results(job, form)]
    assert sum(sizes) > 100 * 200 * KIB
    assert max(sizes) < 2 * BATCH_BYTES


async def begin(app: Any, path: str, headers: dict[str, str], body: bytes) -> asyncio.Task[None]:
    """A request that sends this and no more, once all of it was read."""
    read = asyncio.Event()
    parts = iter([body])

    async def receive() -> Any:
        if (part := next(parts, None)) is not None:
            return {"type": "http.request", "body": part, "more_body": True}
        read.set()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        read.set()

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": raw}
    task = asyncio.create_task(app(scope, receive, send))
    await read.wait()
    return task


FORM = {"content-type": "multipart/form-data; boundary=x"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nprompt\n'


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_so_many_uploads_are_open_and_the_next_is_told_to_come_back(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (deployment, routes):
        monkeypatch.setattr(module, "MOST_UPLOADS", 2)
    pool = FakePool(["a"])
    populations = build_app(await make_jobs(pool), pool)
    for app, fields in ((populations, {"spec": "{}"}), (files_app(FileStore(str(tmp_path))), {"purpose": "batch"})):
        slow = [await begin(app, "/", FORM, HEAD) for _ in range(2)]
        async with client(app) as asking:
            send = partial(asking.post, "/", data=fields, files={"file": ("a.csv", b"prompt\nx\n")})
            refused = await send()
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert "uploads" in refused.json()["error"]["message"]
            assert (await asking.get("/")).status_code == 200
            slow[0].cancel()
            await asyncio.wait(slow[:1])
            assert (await send()).is_success
        slow[1].cancel()


async def test_json_bodies_have_a_bound_together(make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "JsonBodies", partial(JsonBodies, 1000, 1500))
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    app = build_app(jobs, pool)
    slow = await begin(app, "/", {"content-type": "application/json"}, b" " * 900)
    body = json.dumps({"rows": [{"prompt": "x" * 700}]})
    async with client(app) as asking:
        assert (await asking.post("/", content=body)).status_code == 429
        assert (await asking.post("/", json={"rows": [{"prompt": "x"}]})).status_code == 201
        slow.cancel()
        await asyncio.wait([slow])
        for _ in range(3):
            assert (await asking.post("/", content=body)).status_code == 201


async def test_a_full_disk_under_an_upload_is_told(make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Request, "form", full)
    pool = FakePool(["a"])
    async with await serve(await make_jobs(pool), pool) as asking:
        answer = await asking.post("/", data={"spec": "{}"}, files={"file": ("a.csv", b"prompt\n")})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "No space left" in answer.json()["error"]["message"]


async def test_a_form_has_one_file(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    async with await serve(await make_jobs(pool), pool) as asking:
        many = [("file", (f"{number}.csv", b"prompt\n")) for number in range(3)]
        answer = await asking.post("/", data={"spec": "{}"}, files=many)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_workbook_has_a_size(make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "MOST_WORKBOOK", 10)
    pool = FakePool(["a"])
    async with await serve(await make_jobs(pool), pool) as asking:
        answer = await asking.post("/", data={"spec": "{}"}, files={"file": ("people.xlsx", b"x" * 11)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "source")
    assert "people.xlsx is larger than" in answer.json()["error"]["message"]


async def test_a_job_has_so_many_rows(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool, max_rows=5)
    async with await serve(jobs, pool) as asking:
        generator = {"name": "ctr", "arguments": {"ad": "a phone", "size": 10**9}}
        refused = await asking.post("/", json={"generator": generator})
        assert refused.status_code == 400
        assert "1,000,000,000 rows, and a job here at most 5" in refused.json()["error"]["message"]
        lines = b"prompt\n" + b"x\n" * 6
        begun = await asking.post("/", data={"spec": "{}"}, files={"file": ("a.csv", lines)})
        ended = await finished(jobs, begun.json()["id"])
    assert (ended.state, "6 rows, and a job here at most 5" in ended.message) == ("failed", True)
