"""Jobs whose store, rows or files give trouble, and what their last state is."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve_app.dispatch.render import CharacterRenderer, NotRendered
from serve_app.driver.jobs.job import cut
from serve_app.errors import StoreError
from serve_app.schema import Row
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec, JobState
from tests.driver.kit import MakeJobs, committed, finished, ids, spec
from tests.fakes import FakePool, rows


async def test_a_store_that_stops_taking_commits_is_tried_again_and_then_ends_the_job(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    from serve_app.storage.filesystem import Folder

    write, broken = Folder.write, 0

    def flaky(self: Folder, name: str, data: Any) -> None:
        nonlocal broken
        if "parts" not in self.path:
            return write(self, name, data)
        broken -= 1
        if broken >= 0 and broken % 2:  # before the write, or after it: an answer that was lost
            raise StoreError("disk on fire")
        write(self, name, data)
        if broken >= 0:
            raise StoreError("disk on fire")

    monkeypatch.setattr(Folder, "write", flaky)
    pool = FakePool(["a"])
    pool.hold_s = 0.01
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(200))
    await committed(jobs, job_id, 8)
    broken = 6
    status = await finished(jobs, job_id)
    assert broken < 0, status
    assert (status.state, status.ok) == ("completed", 200)
    assert sorted(ids(jobs, job_id)) == sorted(row.custom_id for row in rows(200))
    broken = 10**9
    jobs = await make_jobs(FakePool(["a"]), store_wait_s=0.05)
    status = await finished(jobs, await jobs.submit(spec(30)))
    assert (status.state, status.ok) == ("failed", 0)
    assert "disk on fire" in status.message


async def test_a_row_that_the_template_refuses_is_invalid_alone(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = CharacterRenderer.prompts

    def refuse_one(self: CharacterRenderer, some: list[Row]) -> list[bytes | NotRendered]:
        prompts, bad = whole(self, some), NotRendered("roles must alternate")
        return [bad if r.custom_id == "row-2" else p for r, p in zip(some, prompts, strict=True)]

    monkeypatch.setattr(CharacterRenderer, "prompts", refuse_one)
    jobs = await make_jobs(FakePool(["a"]))
    status = await finished(jobs, await jobs.submit(spec(5)))
    assert (status.state, status.ok, status.invalid) == ("completed_with_failures", 4, 1)
    (bad,) = [outcome for outcome in jobs.job(status.id).outcomes() if outcome.status == "invalid"]
    assert (bad.custom_id, bad.value) == ("row-2", None)
    assert "roles must alternate" in (bad.error or "")


async def test_reuse_takes_answers_of_other_jobs_and_runs_only_the_rest(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    first = await finished(jobs, await jobs.submit(spec(30)))
    pool.sizes = []
    again = await finished(jobs, await jobs.submit(spec(50, reuse=True)))
    assert (again.state, again.ok, again.reused) == ("completed", 50, 30)
    assert sum(pool.sizes) == 20
    by_id = {outcome.custom_id: outcome for outcome in jobs.job(first.id).outcomes()}
    for outcome in jobs.job(again.id).outcomes():
        if outcome.reused_from:
            assert outcome.reused_from == first.id
            assert outcome.value == by_id[outcome.custom_id].value
    pool.sizes = []
    await finished(jobs, await jobs.submit(spec(30)))
    assert sum(pool.sizes) == 30  # nobody asked for reuse


async def test_failed_answers_are_not_reused(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"], poison={CharacterRenderer().prompts(rows(3))[2]})  # type: ignore[arg-type]
    jobs = await make_jobs(pool, max_attempts=4)
    first = await finished(jobs, await jobs.submit(spec(6)))
    assert first.failed == 1
    pool.poison = set()
    again = await finished(jobs, await jobs.submit(spec(6, reuse=True)))
    assert (again.ok, again.reused) == (6, 5)


@pytest.mark.parametrize("workload", ["My_Task/v1", "x" * 90, "///"])
async def test_any_workload_name_gives_a_job_id(make_jobs: MakeJobs, workload: str) -> None:
    jobs = await make_jobs(FakePool(["a"]))
    names = [await jobs.submit(spec(1, workload=workload)) for _ in range(2)]
    assert len(set(names)) == 2
    for name in names:
        await finished(jobs, name)


def test_a_population_is_cut_into_as_few_equal_parts_as_fit() -> None:
    assert cut(10, 100, 8) == [(0, 10)]
    assert cut(250, 100, 8) == [(0, 83), (83, 166), (166, 250)]
    assert cut(10_000, 100, 2) == [(0, 5000), (5000, 10_000)]
    assert cut(0, 100, 8) == [(0, 0)]


async def test_the_end_of_a_job_is_written_however_long_the_store_is_away(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    from serve_app.storage.filesystem import Folder

    write, away = Folder.write, False

    def maybe(self: Folder, name: str, data: Any) -> None:
        if away:
            raise StoreError("away")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", maybe)
    pool = FakePool(["a"])
    pool.hold_s = 0.01
    jobs = await make_jobs(pool, store_wait_s=0.05)
    job_id = await jobs.submit(spec(200))
    await committed(jobs, job_id, 8)
    away = True
    while not (await jobs.status(job_id)).message.startswith("ending as failed"):
        await asyncio.sleep(0.01)
    away = False
    assert (await finished(jobs, job_id)).state == "failed"
    await jobs.resume(job_id)
    assert (await finished(jobs, job_id)).ok == 200


async def test_a_driver_whose_job_was_taken_over_leaves_its_state_alone(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    from serve_app.driver.store.store import JobStore

    monkeypatch.setattr(JobStore, "lock", lambda self: nullcontext())  # as on an object store
    pool = FakePool(["a"])
    pool.hold_s = 0.02
    old, new = await make_jobs(pool), await make_jobs(pool)
    job_id = await old.submit(spec(200))
    await committed(old, job_id, 8)
    await new.recover()
    status = await finished(new, job_id)
    assert (status.state, status.ok) == ("completed", 200)
    assert len(ids(new, job_id)) == len(set(ids(new, job_id))) == 200


async def test_a_job_that_another_driver_has_cancelled_does_not_complete(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.01
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(100))
    await committed(jobs, job_id, 8)
    jobs.job(job_id).update(state=JobState.CANCELLED, message="by the other one")
    status = await finished(jobs, job_id)
    assert (status.state, status.message, status.ok) == (JobState.CANCELLED, "by the other one", 100)


@pytest.mark.timeout(30)
async def test_a_job_that_another_driver_has_deleted_ends(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.01
    jobs = await make_jobs(pool, store_wait_s=0.05)
    job_id = await jobs.submit(spec(200))
    await committed(jobs, job_id, 8)
    jobs.job(job_id).clear()
    while jobs.running():
        await asyncio.sleep(0.01)
    assert await jobs.list() == []


async def test_a_job_cancelled_at_once_stays_cancelled(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(FakePool([]))
    for _ in range(5):
        job_id = await jobs.submit(spec(10))
        await jobs.cancel(job_id)
        assert (await finished(jobs, job_id)).state == "cancelled"
        assert jobs.job(job_id).manifest()["state"] == "cancelled"


async def test_a_file_that_shrinks_while_it_is_read_never_ends_completed(make_jobs: MakeJobs, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("custom_id,name\n" + "".join(f"{i},n{i}\n" for i in range(80)))
    pool = FakePool([])
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(JobSpec(source=str(path), prompt="Who is {name}?"))
    while not (await jobs.status(job_id)).message.startswith("waiting for a replica"):
        await asyncio.sleep(0.01)
    path.write_text("custom_id,name\n" + "".join(f"{i},n{i}\n" for i in range(30)))
    pool.names = ["a"]
    status = await finished(jobs, job_id)
    assert status.state == "failed"
    assert "80 rows were counted and 30 have an outcome" in status.message


async def test_an_empty_file_is_a_completed_job_without_rows(make_jobs: MakeJobs, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    jobs = await make_jobs(FakePool(["a"]))
    status = await finished(jobs, await jobs.submit(JobSpec(source=str(path), prompt="Who?")))
    assert (status.state, status.total, status.ok) == ("completed", 0, 0)


async def test_a_job_that_cannot_be_read_hides_no_other(make_jobs: MakeJobs, tmp_path: Path) -> None:
    jobs = await make_jobs(FakePool(["a"]))
    good = await jobs.submit(spec(3))
    await finished(jobs, good)
    bad = await jobs.submit(spec(3, job_id="bad"))
    await finished(jobs, bad)
    job = jobs.job("bad")
    job.update(state=JobState.RUNNING)
    manifest = tmp_path / "runs" / "bad" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"labels"', '"of_a_later_version"'))
    assert await jobs.recover() == []
    assert {status.id for status in await jobs.list()} == {good, "bad"}


@pytest.mark.parametrize("low", ["min_rows_per_replica", "min_chunk_rows", "window_rows"])
def test_sizes_out_of_order_are_refused(low: str) -> None:
    with pytest.raises(ValueError, match=f"{low} 99999 is above"):
        DriverSettings(**{low: 99_999})
