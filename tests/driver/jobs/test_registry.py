"""Jobs over a fake pool: everything but the engine is real, the disk included."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from serve_app.errors import BadSettings, JobConflict
from serve_app.models.default import prepare
from serve_app.schema import Chunk, Finished, ReplicaInfo
from serve_app.spec import JobSpec
from tests.driver.kit import MakeJobs, committed, finished, ids, spec
from tests.fakes import FakePool, rows


class TokenPool(FakePool):
    """Fake replicas that name the default model's tokenizer."""

    async def replicas(self) -> list[ReplicaInfo]:
        tokenizer = str(prepare())
        replace = msgspec.structs.replace
        return [replace(r, engine=replace(r.engine, tokenizer=tokenizer)) for r in await super().replicas()]


async def test_a_job_commits_one_outcome_a_row_and_reports_its_counts(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(FakePool(["a", "b"]), min_rows_per_replica=10)
    job_id = await jobs.submit(spec(40, workload="test/v1", metadata={"mine": 1}, price={"replica_hour": 3.6}))
    status = await finished(jobs, job_id)
    assert (status.state, status.total, status.ok, status.failed) == ("completed", 40, 40, 0)
    assert sum(status.rows_by_replica.values()) == 40
    assert set(status.rows_by_replica) == {"a", "b"}
    assert status.metadata == {"mine": 1}
    assert status.rows_per_s > 0
    assert status.cost == pytest.approx(status.run_s * 2 / 1000)
    outcomes = list(jobs.job(job_id).outcomes())
    assert {outcome.custom_id for outcome in outcomes} == {row.custom_id for row in rows(40)}
    assert len({outcome.content_hash for outcome in outcomes}) == 40
    assert all(outcome.simulated and outcome.engine_version == "fake 1" for outcome in outcomes)


async def test_a_job_that_was_cancelled_has_no_time_left(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.05
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(1000))
    async with asyncio.timeout(30):
        while (await jobs.status(job_id)).eta_s is None:
            await asyncio.sleep(0.01)
    await jobs.cancel(job_id)
    status = await finished(jobs, job_id)
    assert (status.state, status.eta_s) == ("cancelled", None)
    assert status.rows_per_s > 0


async def test_the_time_of_an_external_provider_costs_nothing_that_is_known(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(FakePool([]), provider_urls=("http://127.0.0.1:9/v1",))
    nobody = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "max_retries": 0}
    job_id = await jobs.submit(spec(2, provider=nobody, price={"replica_hour": 5.0}))
    status = await finished(jobs, job_id)
    assert (status.failed, status.cost) == (2, None)
    assert status.price.replica_hour == 5.0


async def test_a_cancelled_job_keeps_what_it_has_and_resumes_the_rest_only(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.05
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(100))
    await committed(jobs, job_id, 8)
    await jobs.cancel(job_id)
    assert (await jobs.status(job_id)).state == "cancelled"
    kept = len(ids(jobs, job_id))
    assert 8 <= kept < 100
    pool.hold_s, pool.sizes = 0.0, []
    await jobs.resume(job_id)
    status = await finished(jobs, job_id)
    assert (status.state, status.ok) == ("completed", 100)
    assert sum(pool.sizes) == 100 - kept
    assert len(set(ids(jobs, job_id))) == len(ids(jobs, job_id)) == 100


async def test_a_resume_that_waits_for_its_turn_is_not_lost_with_its_driver(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.05
    dead = await make_jobs(pool, max_running_jobs=1)
    job_id = await dead.submit(spec(100))
    await committed(dead, job_id, 8)
    await dead.cancel(job_id)
    await dead.submit(spec(400, job_id="before-it"))
    await dead.resume(job_id)
    assert (await dead.status(job_id)).state == "queued"
    await dead.close()
    pool.hold_s = 0.0
    alive = await make_jobs(pool)
    assert set(await alive.recover()) == {"before-it", job_id}
    assert (await finished(alive, job_id)).state == "completed"


async def test_a_job_whose_driver_died_goes_on_by_itself_with_the_next_driver(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.02
    dead = await make_jobs(pool)
    job_id = await dead.submit(spec(60))
    await committed(dead, job_id, 8)
    await dead.close()
    alive = await make_jobs(FakePool(["a"]))
    assert (await alive.status(job_id)).state == "running"
    assert await alive.recover() == [job_id]
    assert (await finished(alive, job_id)).state == "completed"
    assert sorted(ids(alive, job_id)) == sorted(row.custom_id for row in rows(60))


async def test_a_driver_takes_a_job_over_only_when_the_other_lets_go(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.02
    first, second = await make_jobs(pool), await make_jobs(FakePool(["b"]))
    job_id = await first.submit(spec(80))
    await committed(first, job_id, 8)
    await second.recover()
    status = await finished(first, job_id)
    assert (status.state, status.ok) == ("completed", 80)
    assert set(status.rows_by_replica) == {"a"}
    assert len(ids(first, job_id)) == 80


async def test_failed_rows_end_the_job_with_failures_and_never_with_a_value(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sick(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
            raise RuntimeError("out of order")
            yield

    monkeypatch.setattr("serve_app.dispatch.worker.MAX_BACKOFF_S", 0.01)
    jobs = await make_jobs(Sick(["a"]), max_attempts=2)
    status = await finished(jobs, await jobs.submit(spec(9)))
    assert (status.state, status.ok, status.failed) == ("completed_with_failures", 0, 9)
    for outcome in jobs.job(status.id).outcomes():
        assert (outcome.status, outcome.value, outcome.replica) == ("failed", None, None)
        # Alone it may fail twice. Rows of the chunk of 8 were sent three times before that: twice whole, once in pairs.
        assert outcome.attempts in (2, 5)
        assert (outcome.error or "").count("out of order") == outcome.attempts


async def test_a_custom_id_given_twice_is_refused(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(FakePool(["a"]))
    twice = spec(2).model_copy(update={"rows": spec(1).rows * 2})
    with pytest.raises(BadSettings, match="row-0"):
        await jobs.submit(twice)
    assert await jobs.list() == []


async def test_a_job_id_in_use_is_refused(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(FakePool(["a"]))
    job_id = await jobs.submit(spec(1, job_id="mine"))
    with pytest.raises(JobConflict, match="job 'mine' exists"):
        await jobs.submit(spec(1, job_id="mine"))
    assert (await finished(jobs, job_id)).state == "completed"


async def test_a_label_of_two_tokens_fails_the_job_and_names_it(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(TokenPool(["a"]))
    status = await finished(jobs, await jobs.submit(spec(1, labels=["Yes", "antidisestablishment"])))
    assert status.state == "failed"
    assert "'antidisestablishment' is" in status.message


def test_tokenizers_may_be_asked_for_from_many_threads_in_a_fresh_process() -> None:
    script = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from serve_app.dispatch.render import make_renderer\n"
        "from serve_app.models.default import prepare\n"
        "from serve_app.schema import EngineInfo, Row\n"
        "engine = EngineInfo('m', 'v', 2, 4096, True, False, tokenizer=str(prepare()))\n"
        "with ThreadPoolExecutor(8) as threads:\n"
        "    made = list(threads.map(lambda _: make_renderer(engine), range(8)))\n"
        "    rows = [Row(str(i), prompt=f'row {i}') for i in range(200)]\n"
        "    (same,) = {tuple(prompts) for prompts in threads.map(lambda one: one.prompts(rows), made)}\n"
        "assert len(set(map(id, made))) == 1\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


async def test_a_model_that_is_not_served_fails_the_job_and_names_both(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(FakePool(["a"]))
    status = await finished(jobs, await jobs.submit(spec(1, model="big")))
    assert status.state == "failed"
    assert "'big' is not served here, 'fake' is" in status.message


async def test_jobs_run_beside_each_other_and_beyond_the_limit_in_turn(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.01
    jobs = await make_jobs(pool, max_running_jobs=2)
    first, second, third = [await jobs.submit(spec(200, max_tokens=n)) for n in (1, 2, 3)]
    await committed(jobs, first, 16)
    await committed(jobs, second, 16)
    assert (await jobs.status(third)).state == "queued"
    for job_id in (first, second, third):
        await jobs.cancel(job_id)
    assert [(await jobs.status(job_id)).state for job_id in (first, second, third)] == ["cancelled"] * 3


async def test_a_resumed_job_refuses_to_mix_answers_of_two_models(make_jobs: MakeJobs) -> None:
    class Renamed(FakePool):
        async def replicas(self) -> list[ReplicaInfo]:
            replace = msgspec.structs.replace
            return [replace(r, engine=replace(r.engine, model="another")) for r in await super().replicas()]

    pool = FakePool(["a"])
    pool.hold_s = 0.02
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(600))  # more than a busy machine does before the cancel
    await committed(jobs, job_id, 8)
    await jobs.cancel(job_id)
    changed = await make_jobs(Renamed(["a"]))
    await changed.resume(job_id)
    status = await finished(changed, job_id)
    assert status.state == "failed"
    assert "answered as another question" in status.message


async def test_a_file_that_changed_under_a_job_is_refused_at_resume(make_jobs: MakeJobs, tmp_path: Path) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.02
    path = tmp_path / "rows.csv"
    path.write_text("custom_id,name\n" + "".join(f"{i},n{i}\n" for i in range(80)))
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(JobSpec(source=str(path), prompt="Who is {name}?"))
    await committed(jobs, job_id, 8)
    await jobs.cancel(job_id)
    path.write_text("custom_id,name\n" + "".join(f"{i},m{i}\n" for i in range(99)))
    await jobs.resume(job_id)
    status = await finished(jobs, job_id)
    assert status.state == "failed"
    assert "changed since the job began" in status.message


async def test_cancelling_twice_at_once_keeps_manifest_and_rows_together(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.01
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(200))
    await committed(jobs, job_id, 16)
    await asyncio.gather(jobs.cancel(job_id), jobs.cancel(job_id))
    status = await jobs.status(job_id)
    assert status.state == "cancelled"
    assert status.ok == len(ids(jobs, job_id))
