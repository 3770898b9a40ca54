"""Jobs over a fake pool: everything but the engine is real, the tokenizer and the disk included."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.driver.deployment import build_app
from serve_app.driver.jobs import Jobs
from serve_app.driver.spec import JobSpec
from serve_app.errors import BadSettings, JobConflict
from serve_app.models.default import prepare
from serve_app.schema import Chunk, ChunkResult, Outcome, ReplicaInfo
from serve_app.settings import DriverSettings
from tests.fakes import FakePool, rows


class TokenPool(FakePool):
    """Fake replicas that name the default model's tokenizer."""

    async def replicas(self) -> list[ReplicaInfo]:
        tokenizer = str(prepare())
        return [replace(r, engine=replace(r.engine, tokenizer=tokenizer)) for r in await super().replicas()]


MakeJobs = Callable[..., Jobs]


@pytest.fixture
def make_jobs(tmp_path: Path) -> MakeJobs:
    def make(pool: FakePool, **settings: Any) -> Jobs:
        return Jobs(DriverSettings(store=str(tmp_path / "runs"), chunk_rows=8, commit_seconds=0.01, **settings), pool)

    return make


def spec(count: int, **values: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"rows": [{"custom_id": r.custom_id, "messages": r.messages} for r in rows(count)], **values}
    )


async def finished(jobs: Jobs, job_id: str) -> Any:
    while jobs.status(job_id).state in ("queued", "running"):
        await asyncio.sleep(0.01)
    return jobs.status(job_id)


async def test_a_job_commits_one_outcome_a_row_and_reports_its_counts(make_jobs: MakeJobs) -> None:
    jobs = make_jobs(TokenPool(["a", "b"]), min_rows_per_replica=10)
    job_id = jobs.submit(spec(40, workload="test/v1", metadata={"mine": 1}))
    status = await finished(jobs, job_id)
    assert (status.state, status.total, status.ok, status.failed) == ("completed", 40, 40, 0)
    assert sum(status.rows_by_replica.values()) == 40
    assert set(status.rows_by_replica) == {"a", "b"}
    assert status.metadata == {"mine": 1}
    assert status.rows_per_s > 0
    outcomes = list(jobs.job(job_id).outcomes())
    assert {outcome.custom_id for outcome in outcomes} == {row.custom_id for row in rows(40)}
    assert len({outcome.content_hash for outcome in outcomes}) == 40
    assert all(outcome.simulated and outcome.engine_version == "fake 1" for outcome in outcomes)


async def test_a_cancelled_job_keeps_what_it_has_and_resumes_the_rest_only(make_jobs: MakeJobs) -> None:
    pool = TokenPool(["a"])
    pool.hold_s = 0.05
    jobs = make_jobs(pool)
    job_id = jobs.submit(spec(100))
    while jobs.status(job_id).ok < 8:
        await asyncio.sleep(0.01)
    await jobs.cancel(job_id)
    assert jobs.status(job_id).state == "cancelled"
    kept = len(list(jobs.job(job_id).outcomes()))
    assert 8 <= kept < 100
    pool.hold_s, pool.sizes = 0.0, []
    jobs.resume(job_id)
    status = await finished(jobs, job_id)
    assert (status.state, status.ok) == ("completed", 100)
    assert sum(pool.sizes) == 100 - kept
    assert len({outcome.custom_id for outcome in jobs.job(job_id).outcomes()}) == 100


async def test_a_job_whose_driver_died_is_interrupted_and_another_driver_goes_on(make_jobs: MakeJobs) -> None:
    dead = make_jobs(TokenPool(["a"]))
    job_id = dead.submit(spec(30))
    (task,) = dead._tasks.values()
    task.cancel("as SIGKILL would: before a line of the job ran")
    await asyncio.sleep(0)
    dead.job(job_id).set_state("running")
    alive = make_jobs(TokenPool(["a"]))
    assert alive.status(job_id).state == "interrupted"
    alive.resume(job_id)
    assert (await finished(alive, job_id)).state == "completed"


async def test_failed_rows_end_the_job_with_failures_and_never_with_a_value(make_jobs: MakeJobs) -> None:
    class Sick(TokenPool):
        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            raise RuntimeError("out of order")

    jobs = make_jobs(Sick(["a"]), max_attempts=1)
    status = await finished(jobs, jobs.submit(spec(9)))
    assert (status.state, status.ok, status.failed) == ("completed_with_failures", 0, 9)
    for outcome in jobs.job(status.id).outcomes():
        assert (outcome.status, outcome.value, outcome.replica) == ("failed", None, None)
        assert "out of order" in (outcome.error or "")


async def test_a_custom_id_given_twice_is_refused(make_jobs: MakeJobs) -> None:
    twice = spec(2).model_copy(update={"rows": spec(1).rows * 2})
    with pytest.raises(BadSettings, match="custom_id 'row-0' is given 2 times"):
        make_jobs(TokenPool(["a"])).submit(twice)


async def test_a_job_id_in_use_is_refused(make_jobs: MakeJobs) -> None:
    jobs = make_jobs(TokenPool(["a"]))
    job_id = jobs.submit(spec(1, job_id="mine"))
    with pytest.raises(JobConflict, match="job 'mine' exists"):
        jobs.submit(spec(1, job_id="mine"))
    await finished(jobs, job_id)


async def test_a_label_of_two_tokens_fails_the_job_and_names_it(make_jobs: MakeJobs) -> None:
    jobs = make_jobs(TokenPool(["a"]))
    status = await finished(jobs, jobs.submit(spec(1, labels=["Yes", "antidisestablishment"])))
    assert status.state == "failed"
    assert "'antidisestablishment' is" in status.message


async def test_the_control_routes_speak_of_errors_as_openai_does(make_jobs: MakeJobs) -> None:
    pool = TokenPool(["a"])
    app = build_app(make_jobs(pool), pool)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        missing = await client.get("/nope")
        assert missing.status_code == 404
        assert missing.json()["error"]["type"] == "not_found_error"
        wrong = await client.post("/", json={"rows": [], "lables": ["Yes"]})
        assert wrong.status_code == 400
        assert "lables" in wrong.json()["error"]["message"]
        body = {"rows": [{"custom_id": "1", "messages": [{"role": "user", "content": "hi"}]}]}
        created = await client.post("/", json=body)
        assert created.status_code == 201
        job_id = created.json()["id"]
        while (await client.get(f"/{job_id}")).json()["state"] != "completed":
            await asyncio.sleep(0.01)
        results = (await client.get(f"/{job_id}/results")).text.splitlines()
        assert len(results) == 1
        assert [job["id"] for job in (await client.get("/")).json()["data"]] == [job_id]
        assert len((await client.get("/replicas")).json()["data"]) == 1


async def test_a_resumed_job_refuses_to_mix_answers_of_two_models(make_jobs: MakeJobs) -> None:
    class Renamed(TokenPool):
        async def replicas(self) -> list[ReplicaInfo]:
            return [replace(r, engine=replace(r.engine, model="another")) for r in await super().replicas()]

    pool = TokenPool(["a"])
    pool.hold_s = 0.02
    jobs = make_jobs(pool)
    job_id = jobs.submit(spec(60))
    while jobs.status(job_id).ok < 8:
        await asyncio.sleep(0.005)
    await jobs.cancel(job_id)
    changed = make_jobs(Renamed(["a"]))
    changed.resume(job_id)
    status = await finished(changed, job_id)
    assert status.state == "failed"
    assert "answered by model 'fake'" in status.message


async def test_two_drivers_never_run_one_job(make_jobs: MakeJobs) -> None:
    pool = TokenPool(["a"])
    pool.hold_s = 0.02
    first, second = make_jobs(pool), make_jobs(TokenPool(["b"]))
    job_id = first.submit(spec(80))
    while first.status(job_id).ok < 8:
        await asyncio.sleep(0.005)
    second.resume(job_id)
    status = await finished(first, job_id)
    assert (status.state, status.ok) == ("completed", 80)
    assert set(status.rows_by_replica) == {"a"}
    assert len(list(first.job(job_id).outcomes())) == 80


async def test_cancelling_twice_at_once_keeps_manifest_and_rows_together(make_jobs: MakeJobs) -> None:
    pool = TokenPool(["a"])
    pool.hold_s = 0.01
    jobs = make_jobs(pool)
    job_id = jobs.submit(spec(200))
    while jobs.status(job_id).ok < 16:
        await asyncio.sleep(0.001)
    await asyncio.gather(jobs.cancel(job_id), jobs.cancel(job_id))
    status = jobs.status(job_id)
    assert status.state == "cancelled"
    assert status.ok == len(list(jobs.job(job_id).outcomes()))


async def test_a_row_that_the_template_refuses_is_invalid_alone(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_app.driver.render import Renderer

    whole = Renderer._text

    def refuse_one(self: Renderer, row: Any) -> str | Exception:
        return ValueError("roles must alternate") if row.custom_id == "row-2" else whole(self, row)

    monkeypatch.setattr(Renderer, "_text", refuse_one)
    jobs = make_jobs(TokenPool(["a"]))
    status = await finished(jobs, jobs.submit(spec(5)))
    assert (status.state, status.ok, status.invalid) == ("completed_with_failures", 4, 1)
    (bad,) = [outcome for outcome in jobs.job(status.id).outcomes() if outcome.status == "invalid"]
    assert (bad.custom_id, bad.value) == ("row-2", None)
    assert "roles must alternate" in (bad.error or "")


@pytest.mark.parametrize("workload", ["My_Task/v1", "x" * 90, "///"])
async def test_any_workload_name_gives_a_job_id(make_jobs: MakeJobs, workload: str) -> None:
    jobs = make_jobs(TokenPool(["a"]))
    ids = [jobs.submit(spec(1, workload=workload)) for _ in range(2)]
    assert len(set(ids)) == 2
    for job_id in ids:
        await finished(jobs, job_id)


async def test_results_of_any_text_reach_the_client_over_http(make_jobs: MakeJobs) -> None:
    class Odd(TokenPool):
        def _answer(self, prompt: tuple[int, ...]) -> Any:
            return replace(super()._answer(prompt), text="a\u2028b\x85c\nd")

    pool = Odd(["a"])
    jobs = make_jobs(pool)
    status = await finished(jobs, jobs.submit(spec(3)))
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(build_app(jobs, pool)), base_url="http://test") as client,
        client.stream("GET", f"/{status.id}/results") as response,
    ):
        found = [Outcome.from_json(line) async for line in response.aiter_lines()]
    assert [(outcome.value or {})["text"] for outcome in found] == ["a\u2028b\x85c\nd"] * 3
