"""A served name may be another model tomorrow: answers of two are never mixed."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serve_app.driver.jobs.registry import Jobs
from serve_app.driver.store.store import Store
from serve_app.errors import JobConflict
from serve_app.schema import Identity, ReplicaInfo, Request, Row
from tests.driver.kit import MakeJobs, committed, finished, spec
from tests.fakes import FakePool

OLD, NEW = "aaaa1111", "bbbb2222"


class Served(FakePool):
    """Fake replicas of one identity."""

    def __init__(self, identity: str, hold_s: float = 0.0) -> None:
        super().__init__(["a"])
        self.identity = identity
        self.hold_s = hold_s

    async def replicas(self) -> list[ReplicaInfo]:
        replace = msgspec.structs.replace
        return [replace(r, engine=replace(r.engine, identity=self.identity)) for r in await super().replicas()]


async def begun(jobs: Jobs, **values: Any) -> str:
    """A job with some answers."""
    job_id = await jobs.submit(spec(400, **values))
    await committed(jobs, job_id, 8)
    await jobs.cancel(job_id)
    return job_id


async def test_a_resume_after_a_model_update_is_refused_and_names_both(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(Served(OLD, 0.02))
    job_id = await begun(jobs)
    done = (await jobs.status(job_id)).done
    assert jobs.job(job_id).manifest().get("engine") == {"model": "fake", "identity": OLD}
    changed = await make_jobs(Served(NEW))
    await changed.resume(job_id)
    status = await finished(changed, job_id)
    assert (status.state, status.done) == ("failed", done)
    assert OLD in status.message
    assert NEW in status.message
    same = await make_jobs(Served(OLD))
    await same.resume(job_id)
    assert (await finished(same, job_id)).ok == 400


async def test_a_job_without_answers_takes_the_model_that_is_there(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(Served(OLD, 30.0))
    job_id = await jobs.submit(spec(20))
    while not jobs.job(job_id).manifest().get("engine"):
        await asyncio.sleep(0.01)
    await jobs.cancel(job_id)
    changed = await make_jobs(Served(NEW))
    await changed.resume(job_id)
    status = await finished(changed, job_id)
    assert (status.state, status.ok) == ("completed", 20), status.message
    assert changed.job(job_id).manifest().get("engine") == {"model": "fake", "identity": NEW}


async def test_a_job_older_than_identities_goes_on_by_name(make_jobs: MakeJobs) -> None:
    jobs = await make_jobs(Served("", 0.02))
    job_id = await begun(jobs)
    jobs.job(job_id).update(engine=None)  # as it was written then
    upgraded = await make_jobs(Served(NEW))
    await upgraded.resume(job_id)
    status = await finished(upgraded, job_id)
    assert (status.state, status.ok) == ("completed", 400), status.message


async def test_reuse_takes_no_answer_of_another_model(make_jobs: MakeJobs) -> None:
    first = await make_jobs(Served(OLD))
    await finished(first, await first.submit(spec(10)))
    for identity, reused in ((NEW, 0), (OLD, 10)):
        jobs = await make_jobs(Served(identity))
        assert (await finished(jobs, await jobs.submit(spec(10, reuse=True)))).reused == reused


async def test_a_running_job_stops_when_the_weights_change_under_its_name(make_jobs: MakeJobs) -> None:
    pool = Served(OLD, 0.02)
    jobs = await make_jobs(pool)
    job_id = await jobs.submit(spec(2000))
    await committed(jobs, job_id, 8)
    pool.names, pool.identity = ["b"], NEW
    status = await finished(jobs, job_id)
    assert status.state == "failed"
    assert "the replicas serve 'fake' (bbbb2222) now, and this began with 'fake' (aaaa1111)" in status.message


def test_parts_that_begin_at_once_pin_one_model(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("job", {})
    parts = [store.open("job"), store.open("job")]
    assert parts[0].pin("fake", OLD) == parts[0].pin("fake", OLD) == OLD
    for model, identity in (("fake", NEW), ("fake", ""), ("other", OLD)):
        with pytest.raises(JobConflict, match=f"by 'fake' .{OLD}., and the replicas serve '{model}' .{identity}"):
            parts[1].pin(model, identity)


def test_hashes_of_stored_jobs_stay() -> None:
    row, request = Row("a", prompt="Who?"), Request("m", "w/v1", ("Yes", "No"))
    assert Identity(request).content_hash(row) == GOLDEN
    assert Identity(request, OLD).content_hash(row) != GOLDEN
    assert Identity(request, OLD).content_hash(row) != Identity(request, NEW).content_hash(row)


# Of version 0.1.
GOLDEN = "1177cd1c3c666715c7380a0979e15dbd"
