"""What `make abuse` found in the control routes."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import pyarrow as pa
import pytest

from serve_app.driver.deployment import MOST_NESTED, build_app, nested
from serve_app.driver.http.results import _write
from tests.driver.kit import MakeJobs, finished, serve, spec
from tests.fakes import FakePool


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("field", ["metadata", "generator", "structured"])
async def test_deep_json_is_refused_with_its_field(make_jobs: MakeJobs, field: str) -> None:
    pool = FakePool(["a"])
    body: dict[str, Any] = {"rows": [{"prompt": "x"}], field: {"a": deep(400)}}
    if field == "generator":
        body = {field: {"name": "ctr", "arguments": {"ad": deep(400)}}}
    async with await serve(await make_jobs(pool), pool) as client:
        answer = await client.post("/", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_levels_are_counted() -> None:
    values: tuple[Any, ...] = (1, "[", [], {}, [[1], {"a": [2]}], deep(MOST_NESTED))
    assert [nested(value) for value in values] == [0, 0, 1, 1, 3, MOST_NESTED]


async def test_a_client_that_leaves_its_upload_is_no_fault_of_the_server(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    app = build_app(await make_jobs(pool), pool)
    for kind in (b"application/json", b"multipart/form-data; boundary=m"):
        sent: list[Any] = []
        parts = iter([{"type": "http.request", "body": b"--m\r\n", "more_body": True}])

        async def receive(parts: Any = parts) -> Any:
            return next(parts, {"type": "http.disconnect"})

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "",
                 "headers": [(b"content-type", kind)], "http_version": "1.1", "scheme": "http"}  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), 10)  # raised ClientDisconnect
        assert sent[0]["status"] == 400


def test_a_spreadsheet_runs_no_text_of_a_csv() -> None:
    texts = ["=cmd|' /C calc'!A0", "@SUM(1)", "+a", "-a", "\t=1", "-1.5e3", "+2", "a=1", "", None]
    table = pa.table({"=name": pa.array(texts), "number": [-1.0] * len(texts)})
    content = b"".join(_write("csv", table.schema, iter([table])))
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    assert header == ["'=name", "number"]
    assert [row[0] for row in rows] == [
        "'=cmd|' /C calc'!A0", "'@SUM(1)", "'+a", "'-a", "'\t=1", "-1.5e3", "+2", "a=1", "", "",
    ]  # fmt: skip
    assert {row[1] for row in rows} == {"-1"}


async def test_json_lines_have_formulas_as_they_are(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    async with await serve(jobs, pool) as client:
        rows = [{"custom_id": "=1+1", "messages": [{"role": "user", "content": "x"}]}]
        job = (await client.post("/", json={**spec(1).model_dump(mode="json"), "rows": rows})).json()["id"]
        await finished(jobs, job)
        lines = await client.get(f"/{job}/results")
        table = await client.get(f"/{job}/results", params={"format": "csv"})
    assert json.loads(lines.text)["custom_id"] == "=1+1"
    assert '"\'=1+1"' in table.text
