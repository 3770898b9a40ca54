"""The control routes of populations, over HTTP."""

import io
import json

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from serve_app.schema import Chunk, Completion, Outcome
from tests.driver.kit import MakeJobs, finished, serve, spec
from tests.fakes import FakePool


async def test_the_control_routes_speak_of_errors_as_openai_does(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    async with await serve(jobs, pool) as client:
        missing = await client.get("/nope")
        assert missing.status_code == 404
        assert missing.json()["error"]["type"] == "invalid_request_error"
        row = {"custom_id": "1", "prompt": "x"}
        for body, told, param in (
            ({"rows": [{}], "lables": ["Yes"]}, "lables", "lables"),
            ({}, "give one of rows, source and generator", None),
            ({"source": "job:manifest.json"}, "source: 'job:' names an uploaded file", "source"),
            ({"source": "/nowhere/rows.csv"}, "/nowhere/rows.csv", "source"),
            ({"rows": [row], "prompt": "{custom_id.__class__}"}, "prompt", "prompt"),
            ({"rows": [row], "messages": [{"role": "user", "content": "{"}]}, "brace", "messages[0].content"),
            ({"rows": [row], "messages": [{"role": "", "content": "x"}]}, "messages.0.role", "messages.0.role"),
            ({"rows": [row], "job_id": "A"}, "'A' is no job id", "job_id"),
            ({"rows": [row], "job_id": "replicas"}, "is the name of a route", "job_id"),
            ({"generator": {"name": "none"}}, "'none' is not installed here", "generator.name"),
        ):
            wrong = await client.post("/", json=body)
            assert wrong.status_code == 400, body
            assert told in wrong.json()["error"]["message"]
            assert wrong.json()["error"]["param"] == param
        assert (await client.post("/", content=b"{")).status_code == 400
        assert (await client.get("/")).json()["data"] == []


async def test_a_job_from_submit_to_delete_over_http(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    async with await serve(jobs, pool) as client:
        body = {"rows": [{"custom_id": "1", "messages": [{"role": "user", "content": "hi"}]}]}
        created = await client.post("/", json=body)
        assert created.status_code == 201
        job_id = created.json()["id"]
        await finished(jobs, job_id)
        assert len((await client.get(f"/{job_id}/results")).text.splitlines()) == 1
        assert [job["id"] for job in (await client.get("/")).json()["data"]] == [job_id]
        assert len((await client.get("/replicas")).json()["data"]) == 1
        assert (await client.get(f"/{job_id}/results", params={"format": "xml"})).status_code == 400
        assert (await client.post(f"/{job_id}/cancel")).status_code == 409
        assert (await client.delete(f"/{job_id}")).status_code == 204
        assert (await client.get(f"/{job_id}")).status_code == 404


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
async def test_an_uploaded_file_is_the_population(make_jobs: MakeJobs, form: str) -> None:
    table = pa.table({"custom_id": ["x", "y"], "name": ["Ann", 'B"ob, jr']})
    file = io.BytesIO()
    if form == "csv":
        pa.csv.write_csv(table, file)
    elif form == "parquet":
        pq.write_table(table, file)
    else:
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist()))
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    async with await serve(jobs, pool) as client:
        fields = {"spec": json.dumps({"prompt": "Who is {name}?"})}
        answer = await client.post("/", data=fields, files={"file": (f"people.{form}", file.getvalue())})
        assert answer.status_code == 201, answer.text
        status = await finished(jobs, answer.json()["id"])
    assert (status.state, status.ok) == ("completed", 2)
    found = {o.custom_id: (o.value or {})["text"] for o in jobs.job(status.id).outcomes()}
    assert found["y"] == str([ord(c) for c in 'Who is B"ob, jr?'])


async def test_events_tell_each_change_until_the_end(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    async with await serve(jobs, pool) as client:
        job_id = await jobs.submit(spec(20))
        answer = await client.get(f"/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [block.splitlines() for block in answer.text.replace("\r\n", "\n").split("\n\n") if "data:" in block]
    assert events[0][0] == "event: status"
    assert events[-1][0] == "event: end"
    assert json.loads(events[-1][1].removeprefix("data: "))["state"] == "completed"


@pytest.mark.parametrize("labels", [[], ["Yes", "No"]])
async def test_results_come_as_jsonl_csv_and_parquet_and_say_the_same(make_jobs: MakeJobs, labels: list[str]) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    status = await finished(jobs, await jobs.submit(spec(30, labels=labels)))
    async with await serve(jobs, pool) as client:
        get = {f: (await client.get(f"/{status.id}/results", params={"format": f})).content for f in FORMS}
        late = (await client.get(f"/{status.id}/results", params={"after": 25})).content
    outcomes = [Outcome.from_json(line) for line in get["jsonl"].splitlines()]
    tables = [pa.csv.read_csv(io.BytesIO(get["csv"])), pq.read_table(io.BytesIO(get["parquet"]))]
    assert late.splitlines() == get["jsonl"].splitlines()[25:]
    for table in tables:
        assert table["custom_id"].to_pylist() == [outcome.custom_id for outcome in outcomes]
        if labels:
            assert table["logprob_No"].to_pylist() == [(o.value or {})["logprobs"]["No"] for o in outcomes]
            assert table["mass"].to_pylist() == pytest.approx([(o.value or {})["mass"] for o in outcomes])
        else:
            assert table["text"].to_pylist() == [(o.value or {})["text"] for o in outcomes]


FORMS = ("jsonl", "csv", "parquet")


async def test_results_of_any_text_reach_the_client_over_http(make_jobs: MakeJobs) -> None:
    class Odd(FakePool):
        def _answer(self, prompt: bytes, chunk: Chunk) -> Completion:
            return msgspec.structs.replace(super()._answer(prompt, chunk), text="a\u2028b\x85c\nd")

    pool = Odd(["a"])
    jobs = await make_jobs(pool)
    status = await finished(jobs, await jobs.submit(spec(3)))
    async with await serve(jobs, pool) as client:
        lines = (await client.get(f"/{status.id}/results")).content.removesuffix(b"\n").split(b"\n")
    assert [(Outcome.from_json(line).value or {})["text"] for line in lines] == ["a\u2028b\x85c\nd"] * 3
