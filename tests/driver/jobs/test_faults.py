"""Stores that are away for a moment, uploads under way, and two drivers at once: no job is lost or left behind."""

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import pytest

from serve_app.driver.jobs import job as job_module
from serve_app.driver.jobs import part as part_module
from serve_app.driver.jobs import turn as turn_module
from serve_app.driver.jobs.job import JobRun
from serve_app.driver.jobs.registry import Jobs
from serve_app.driver.jobs.reuse import Reuse
from serve_app.driver.store.log import OutcomeLog
from serve_app.driver.store.store import JobStore, Store
from serve_app.errors import JobConflict, StoreError
from serve_app.spec import JobSpec, JobState
from tests.driver.kit import MakeJobs, committed, finished, ids, spec
from tests.fakes import FakePool

pytestmark = pytest.mark.timeout(60)


class Away:
    """A method that raises StoreError its next `left` times, where `when` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, left: int = 0) -> None:
        self.left = left
        whole = getattr(owner, name)

        def call(this: Any, *args: Any, **named: Any) -> Any:
            if self.left and self.when(this):
                self.left -= 1
                raise StoreError("503 Slow Down")
            return whole(this, *args, **named)

        monkeypatch.setattr(owner, name, call)

    def when(self, this: Any) -> bool:
        return True


async def test_a_store_that_is_away_before_a_job_runs_orphans_it_not(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    jobs = await make_jobs(FakePool(["a"]))
    away = Away(monkeypatch, JobRun, "__init__")
    lock, manifest = JobStore.lock, Away(monkeypatch, JobStore, "manifest")

    def locked(self: JobStore) -> Any:
        manifest.left = 3  # the next look at the job, of one that runs it
        return lock(self)

    monkeypatch.setattr(JobStore, "lock", locked)
    job_id = await jobs.submit(spec(20))
    assert (await finished(jobs, job_id)).ok == 20
    monkeypatch.setattr(JobStore, "lock", lock)
    away.left = 3
    job_id = await jobs.submit(spec(20))
    assert (await finished(jobs, job_id)).ok == 20
    assert not away.left
    assert not manifest.left


async def test_a_store_that_is_away_when_the_last_rows_are_answered_is_waited_for_as_long_as_before(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    monkeypatch.setattr(part_module, "LAST_PATIENCE_S", 0.0)
    pool = FakePool(["a"])
    jobs = await make_jobs(pool, store_wait_s=30)
    append = Away(monkeypatch, OutcomeLog, "append")
    monkeypatch.setattr(append, "when", lambda log: sum(len(chunk.prompts) for _, chunk in pool.served) == 20)
    append.left = 20
    job_id = await jobs.submit(spec(20))
    status = await finished(jobs, job_id)
    assert (status.state, status.ok, append.left) == ("completed", 20, 0), status.message


async def test_a_job_that_could_not_be_read_yet_can_be_cancelled(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await make_jobs(FakePool(["a"]))
    Away(monkeypatch, JobRun, "__init__", 10**6)
    job_id = await jobs.submit(spec(20))
    await jobs.cancel(job_id)
    assert (await jobs.status(job_id)).state == "cancelled"


async def test_recovery_does_not_give_up_and_what_cannot_be_read_hides_no_other(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    dead = await make_jobs(FakePool([]))
    names = [await dead.submit(spec(5, job_id=name)) for name in ("a", "b")]
    await dead.close()
    alive = await make_jobs(FakePool(["a"]))
    Away(monkeypatch, Store, "jobs", 200)
    bad = Away(monkeypatch, JobStore, "_load", 10**9)
    monkeypatch.setattr(bad, "when", lambda job: job.job_id == "a")
    created = Away(monkeypatch, JobStore, "created_at", 10**9)
    monkeypatch.setattr(created, "when", lambda job: job.job_id == "a")
    recovering = asyncio.create_task(alive.recover())
    assert (await _ended(alive, "b")).ok == 5
    assert not recovering.done()
    assert {status.id: status.state for status in await alive.list()} == {"a": "failed", "b": "completed"}
    bad.left = created.left = 0
    assert sorted(await recovering) == names
    assert await _names(alive) == set(names)
    assert (await finished(alive, "a")).ok == 5


async def _ended(jobs: Jobs, job_id: str) -> Any:
    while (status := await jobs.status(job_id)).state.active:
        await asyncio.sleep(0.01)
    return status


async def test_a_part_whose_store_is_away_as_it_begins_is_begun_again(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    jobs = await make_jobs(FakePool(["a"]))
    begin, committed_rows = Away(monkeypatch, OutcomeLog, "begin", 2), Away(monkeypatch, JobRun, "_check_source", 2)
    reuse = Away(monkeypatch, Reuse, "__init__", 2)
    status = await finished(jobs, await jobs.submit(spec(20, reuse=True)))
    assert (status.state, status.ok) == ("completed", 20), status.message
    assert (begin.left, committed_rows.left, reuse.left) == (0, 0, 0)


@pytest.mark.parametrize("when", ["listed", "read"])
async def test_reuse_goes_on_when_a_job_is_deleted_meanwhile(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    jobs = await make_jobs(FakePool(["a"]), store_wait_s=0.05)
    for name in ("gone", "stays"):
        await finished(jobs, await jobs.submit(spec(10, job_id=name)))
    owner, method = {"listed": (Store, "open"), "read": (OutcomeLog, "tables")}[when]
    whole = getattr(owner, method)

    def deletes(this: Any, *args: Any, **named: Any) -> Any:
        if "columns" in named or args == ("gone",):
            monkeypatch.setattr(owner, method, whole)
            jobs.job("gone").clear()
        return whole(this, *args, **named)

    job_id = (await make_spec_job(jobs)).job_id
    monkeypatch.setattr(owner, method, deletes)
    status = await finished(jobs, job_id)
    assert (status.state, status.ok, status.reused) == ("completed", 10, 10), status.message
    assert await _names(jobs) == {"stays", job_id}


async def make_spec_job(jobs: Jobs) -> JobStore:
    """A job that reuses, as soon as the loop is left."""
    return jobs.job(await jobs.submit(spec(10, reuse=True)))


async def _names(jobs: Jobs) -> set[str]:
    return {status.id for status in await jobs.list()}


class Slow(io.BytesIO):
    """An upload that takes its time."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.3)
        return super().read(size)


@pytest.mark.parametrize("same_driver", [True, False])
async def test_recovery_does_not_run_a_job_whose_upload_is_under_way(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, same_driver: bool
) -> None:
    monkeypatch.setattr(turn_module, "TAKE_OVER_S", 0.02)
    jobs = await make_jobs(FakePool(["a"]))
    other = jobs if same_driver else await make_jobs(FakePool(["b"]))
    asked = JobSpec(job_id="up", source="job:input-rows.jsonl")
    upload = asyncio.create_task(jobs.submit(asked, ("input-rows.jsonl", Slow(b'{"prompt": "x"}\n'))))
    await asyncio.sleep(0.15)
    await other.recover()
    await asyncio.sleep(0.1)
    assert other.replicas_wanted() == 0
    await upload
    status = await finished(jobs, "up")
    assert (status.state, status.ok) == ("completed", 1), status.message


async def test_an_upload_that_ended_with_its_driver_ends_its_job(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(turn_module, "TAKE_OVER_S", 0.01)
    jobs = await make_jobs(FakePool(["a"]))
    asked = JobSpec(source="job:input-rows.jsonl").model_dump(mode="json")
    Store(str(tmp_path / "runs")).create("cut", asked, uploading=True)
    await jobs.recover()
    await asyncio.sleep(0.1)
    assert (await jobs.status("cut")).message == "its rows are still being uploaded"
    monkeypatch.setattr(turn_module, "UPLOAD_WAIT_S", 0.0)
    status = await finished(jobs, "cut")
    assert (status.state, status.message) == ("failed", "source: its upload was cut short: submit it again")


def backdate(manifest: Path, created_at: str) -> None:
    manifest.write_bytes(manifest.read_bytes().replace(created_at.encode(), b"2001" + created_at[4:].encode()))


async def test_an_upload_goes_on_where_the_clock_was_set_to_another_day(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(turn_module, "TAKE_OVER_S", 0.01)
    jobs = await make_jobs(FakePool(["a"]))
    asked = JobSpec(source="job:input-rows.jsonl").model_dump(mode="json")
    job = Store(str(tmp_path / "runs")).create("up", asked, uploading=True)
    backdate(Path(f"{tmp_path}/runs/up/manifest.json"), job.created_at())
    await jobs.recover()
    await asyncio.sleep(0.1)
    assert (await jobs.status("up")).message == "its rows are still being uploaded"


async def test_jobs_that_another_driver_holds_use_up_no_turns(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_module, "TAKE_OVER_S", 0.05)
    pool = FakePool(["a"])
    pool.hold_s = 0.2
    old, new = await make_jobs(pool), await make_jobs(FakePool(["b"]), max_running_jobs=2)
    for name, tokens in (("a", 1), ("b", 2)):
        await old.submit(spec(1000, job_id=name, max_tokens=tokens))
        await committed(old, name, 8)
    assert await new.recover() == ["a", "b"]
    await asyncio.sleep(0.1)
    await new.submit(spec(5, job_id="c"))
    assert (await _ended(new, "c")).ok == 5
    assert {run.job.job_id for run in old.running()} == {"a", "b"}


@pytest.mark.parametrize("recovers", [True, False])
async def test_a_job_cancelled_by_the_new_driver_stops_in_the_old_one(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, recovers: bool
) -> None:
    monkeypatch.setattr(turn_module, "TAKE_OVER_S", 0.05)
    monkeypatch.setattr(job_module, "WATCH_S", 0.05)
    pool = FakePool(["a"])
    pool.hold_s = 0.05
    old, new = await make_jobs(pool), await make_jobs(FakePool(["b"]))
    job_id = await old.submit(spec(2000))
    await committed(old, job_id, 8)
    if recovers:
        await new.recover()
    await new.cancel(job_id)
    assert (await new.status(job_id)).state == JobState.CANCELLED
    status = await finished(old, job_id)
    assert (status.state, status.message) == ("cancelled", "cancelled by request")
    assert 8 <= status.ok < 2000
    assert len(ids(new, job_id)) == status.ok
    with pytest.raises(JobConflict, match="is not running"):
        await new.cancel(job_id)
