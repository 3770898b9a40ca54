"""Results beside their inputs, over fake replicas."""

import csv
import io
import json
import math
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve_app.driver.jobs.registry import Jobs
from serve_app.schema import Chunk, Completion
from serve_app.spec import JobSpec
from tests.driver.kit import MakeJobs, committed, finished, serve, spec
from tests.fakes import FakePool

PEOPLE = b"name;age;status\nZoe;30;new\nAnn;41,5;old\n;;\nBob;;\n"


async def joined(jobs: Jobs, pool: FakePool, job_id: str, form: str = "csv") -> bytes:
    async with await serve(jobs, pool) as client:
        answer = await client.get(f"/{job_id}/results", params={"format": form, "inputs": True})
        assert answer.status_code == 200, answer.text
        return answer.content


async def submitted(jobs: Jobs, pool: FakePool, data: bytes, name: str, **fields: Any) -> str:
    async with await serve(jobs, pool) as client:
        files = {"file": (name, data)}
        answer = await client.post("/", data={"spec": json.dumps(fields)}, files=files)
        assert answer.status_code == 201, answer.text
        return str((await finished(jobs, answer.json()["id"])).id)


async def test_a_spreadsheet_comes_back_with_its_columns_and_order_and_the_answers_beside(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a", "b"])
    jobs = await make_jobs(pool, chunk_rows=1, min_chunk_rows=1)
    job_id = await submitted(jobs, pool, PEOPLE, "people.csv", prompt="Who is {name}?", labels=["Yes", "No"])
    rows = list(csv.DictReader(io.StringIO((await joined(jobs, pool, job_id)).decode())))
    assert list(rows[0]) == [
        "name", "age", "status", "custom_id", "prompt", "label", "p_Yes", "p_No", "logprob_Yes", "logprob_No", "mass",
        "answer_status", "error", "model", "simulated",
    ]  # fmt: skip
    assert [(row["name"], row["age"], row["status"]) for row in rows] == [
        ("Zoe", "30", "new"), ("Ann", "41,5", "old"), ("Bob", "", ""),
    ]  # fmt: skip
    assert [row["prompt"] for row in rows] == ["Who is Zoe?", "Who is Ann?", "Who is Bob?"]
    assert [row["answer_status"] for row in rows] == ["ok"] * 3
    for row in rows:
        yes, no = float(row["logprob_Yes"]), float(row["logprob_No"])
        assert float(row["p_Yes"]) == pytest.approx(math.exp(yes) / (math.exp(yes) + math.exp(no)))
        assert float(row["p_Yes"]) + float(row["p_No"]) == pytest.approx(1)
        assert row["label"] == ("Yes" if yes >= no else "No")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
async def test_json_and_parquet_say_the_same(make_jobs: MakeJobs, form: str) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    table = pa.table({"id": [3, 1, 2], "text": ["c", None, "b"]})
    file = io.BytesIO()
    pq.write_table(table, file)
    job_id = await submitted(jobs, pool, file.getvalue(), "texts.parquet", prompt="{text}")
    data = await joined(jobs, pool, job_id, form)
    rows = (
        pq.read_table(io.BytesIO(data)).to_pylist() if form == "parquet" else list(map(json.loads, data.splitlines()))
    )
    assert [(row["id"], row["text"], row["custom_id"]) for row in rows] == [
        ("3", "c", "3"),
        ("1", None, "1"),
        ("2", "b", "2"),
    ]
    assert (rows[0]["answer_text"], rows[2]["answer_text"]) == ("[99]", "[98]")
    assert all(row["simulated"] is True for row in rows)


async def test_rows_whose_outcomes_came_in_another_order_still_find_them(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a", "b"])
    jobs = await make_jobs(pool, chunk_rows=4, min_chunk_rows=1)
    lines = b"".join(json.dumps({"text": f"t{i}", "tokens": i}).encode() + b"\n" for i in range(500))
    job_id = await submitted(jobs, pool, lines, "texts.jsonl", prompt="{text}", length_column="tokens")  # longest first
    assert [outcome.custom_id for outcome in jobs.job(job_id).outcomes()] != [f"row-{i + 1}" for i in range(500)]
    rows = list(map(json.loads, (await joined(jobs, pool, job_id, "jsonl")).splitlines()))
    assert [row["text"] for row in rows] == [f"t{i}" for i in range(500)]
    assert [row["answer_text"] for row in rows] == [str([ord(c) for c in f"t{i}"]) for i in range(500)]


@pytest.mark.parametrize(
    ("messages", "asked"),
    [
        ([{"role": "user", "content": "Is {name} tall?"}], "Is Ann tall?"),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{name}?"}],
            '[{"role":"system","content":"Be brief."},{"role":"user","content":"Ann?"}]',
        ),
    ],
)
async def test_a_chat_of_one_message_is_that_message(
    make_jobs: MakeJobs, messages: list[dict[str, str]], asked: str
) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    job_id = await submitted(jobs, pool, b"name\nAnn\n", "people.csv", messages=messages)
    (row,) = map(json.loads, (await joined(jobs, pool, job_id, "jsonl")).splitlines())
    assert row["prompt"] == asked


async def test_a_row_without_an_answer_says_why_and_one_without_an_outcome_is_empty(make_jobs: MakeJobs) -> None:
    class Refusing(FakePool):
        def _answer(self, prompt: bytes, chunk: Chunk) -> Completion:
            return msgspec.structs.replace(super()._answer(prompt, chunk), status="invalid", error="too long")

    pool = Refusing(["a"])
    jobs = await make_jobs(pool)
    job_id = await submitted(jobs, pool, b"name\nAnn\n", "people.csv", prompt="{name}")
    (row,) = map(json.loads, (await joined(jobs, pool, job_id, "jsonl")).splitlines())
    assert (row["status"], row["error"], row["text"]) == ("invalid", "too long", None)

    slow = FakePool(["a"])
    slow.hold_s = 0.05
    jobs = await make_jobs(slow, chunk_rows=4)
    running = await jobs.submit(spec(200))
    await committed(jobs, running, 4)
    await jobs.cancel(running)
    rows = list(map(json.loads, (await joined(jobs, slow, running, "jsonl")).splitlines()))
    assert len(rows) == 200
    assert {row["status"] for row in rows} == {"ok", None}


async def test_requests_and_a_wish_to_leave_out_rows_are_refused(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(3))
    await finished(jobs, job_id)
    body = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "fake", "prompt": "x"}}
    batch = await jobs.submit(JobSpec(rows=(body,), endpoint="/v1/completions"))
    await finished(jobs, batch)
    async with await serve(jobs, pool) as client:
        late = await client.get(f"/{job_id}/results", params={"inputs": True, "after": 1})
        requests = await client.get(f"/{batch}/results", params={"inputs": True})
    assert (late.status_code, late.json()["error"]["param"]) == (400, "after")
    assert (requests.status_code, requests.json()["error"]["param"]) == (400, "inputs")
