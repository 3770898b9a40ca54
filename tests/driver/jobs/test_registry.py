"""Jobs over a fake pool: everything but the engine is real, the disk included."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.render import CharacterRenderer
from serve_app.driver.deployment import build_app
from serve_app.driver.http.allowed import check_permitted
from serve_app.driver.jobs import part as run
from serve_app.driver.jobs.job import cut, dispatch_settings
from serve_app.driver.jobs.registry import Jobs
from serve_app.errors import BadSettings, JobConflict, StoreError
from serve_app.models.default import prepare
from serve_app.schema import Chunk, ChunkResult, Completion, Outcome, ReplicaInfo, Row
from serve_app.settings import ControlAccessSettings, DriverSettings
from serve_app.spec import JobSpec
from tests.fakes import FakePool, rows

MakeJobs = Callable[..., Awaitable[Jobs]]
DONE = ("completed", "completed_with_failures", "cancelled", "failed")


class TokenPool(FakePool):
    """Fake replicas that name the default model's tokenizer."""

    async def replicas(self) -> list[ReplicaInfo]:
        tokenizer = str(prepare())
        replace = msgspec.structs.replace
        return [replace(r, engine=replace(r.engine, tokenizer=tokenizer)) for r in await super().replicas()]


@pytest.fixture
async def make_jobs(tmp_path: Path) -> AsyncIterator[MakeJobs]:
    async with AsyncExitStack() as stack:

        async def make(pool: FakePool, **settings: Any) -> Jobs:
            fast = {"chunk_rows": 8, "window_rows": 16, "max_window_rows": 16, "commit_seconds": 0.01}
            sizes = DriverSettings(**{"store": str(tmp_path / "runs"), **fast, **settings})
            dispatch = dispatch_settings(sizes)
            dispatcher = Dispatcher(pool, type(dispatch)(**{**_fields(dispatch), "refresh_s": 0.02}))
            jobs = Jobs(sizes, await stack.enter_async_context(dispatcher))
            stack.push_async_callback(jobs.close)
            return jobs

        yield make


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def spec(count: int, **values: Any) -> JobSpec:
    inline = [{"custom_id": row.custom_id, "messages": list(row.messages)} for row in rows(count)]
    return JobSpec.model_validate({"rows": inline, **values})


async def finished(jobs: Jobs, job_id: str) -> Any:
    while (await jobs.status(job_id)).state not in DONE or jobs.running():
        await asyncio.sleep(0.01)
    return await jobs.status(job_id)


def ids(jobs: Jobs, job_id: str) -> list[str]:
    return [outcome.custom_id for outcome in jobs.job(job_id).outcomes()]


async def committed(jobs: Jobs, job_id: str, count: int) -> None:
    while (await jobs.status(job_id)).done < count:
        await asyncio.sleep(0.002)


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
        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            raise RuntimeError("out of order")

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
    job_id = await jobs.submit(spec(60))
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


async def test_a_store_that_stops_taking_commits_is_tried_again_and_then_ends_the_job(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr("serve_app.driver.jobs.commit.FIRST_PAUSE_S", 0.001)
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

    def refuse_one(self: CharacterRenderer, some: list[Row]) -> list[bytes | str]:
        prompts = whole(self, some)
        return ["roles must alternate" if r.custom_id == "row-2" else p for r, p in zip(some, prompts, strict=True)]

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
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_app.storage.filesystem import Folder

    write, away = Folder.write, False

    def maybe(self: Folder, name: str, data: Any) -> None:
        if away:
            raise StoreError("away")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", maybe)
    monkeypatch.setattr("serve_app.driver.jobs.commit.FIRST_PAUSE_S", 0.001)
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
    job.update(state="running")
    (tmp_path / "runs" / "bad" / "job.json").write_text('{"workload": "w", "metadata": {}, "of_a_later_version": 1}')
    assert await jobs.recover() == []
    assert {status.id for status in await jobs.list()} == {good, "bad"}


@pytest.mark.parametrize("low", ["min_rows_per_replica", "min_chunk_rows", "window_rows"])
def test_sizes_out_of_order_are_refused(low: str) -> None:
    with pytest.raises(ValueError, match=f"{low} 99999 is above"):
        DriverSettings(**{low: 99_999})


# --- over HTTP ---


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (
            {"provider": {"base_url": "https://evil.example/v1", "model": "m", "api_key_env": "MY_KEY"}},
            "MY_KEY may",
        ),
        (
            {"provider": {"base_url": "https://api.example/v10", "model": "m", "api_key_env": "MY_KEY"}},
            "MY_KEY may",
        ),
        ({"provider": {"base_url": "https://api.example/v1", "model": "m", "api_key_env": "HOME"}}, "HOME may"),
        ({"rows": [], "source": "/etc/passwd", "format": "csv", "prompt": "{x}"}, "source_folders"),
        ({"rows": [], "source": "file:///etc/passwd", "format": "csv", "prompt": "{x}"}, "source_folders"),
        ({"rows": [], "source": "{folder}/../x.csv", "prompt": "{x}"}, "source_folders"),
        ({"rows": [], "source": "zip://x.csv::file:///etc/x.zip", "prompt": "{x}"}, "source_folders"),
        ({"rows": [], "source": "LOCAL:///etc/x.csv", "prompt": "{x}"}, "source_folders"),
        ({"provider": {"base_url": "https://api.example/v1/", "model": "m", "api_key_env": "MY_KEY"}}, ""),
        ({"provider": {"base_url": "http://inside:8000/v1", "model": "m"}}, ""),
        ({"rows": [], "source": "{folder}/x.csv", "prompt": "{x}"}, ""),
        ({"rows": [], "source": "s3://bucket/x.csv", "prompt": "{x}"}, ""),
    ],
)
def test_where_there_are_keys_jobs_may_name_only_what_the_operator_does(
    tmp_path: Path, asked: dict[str, Any], problem: str
) -> None:
    if "source" in asked:
        asked = {**asked, "source": asked["source"].format(folder=tmp_path)}
    job = JobSpec.model_validate({"rows": [{"custom_id": "1", "prompt": "x"}], **asked})
    settings = DriverSettings(
        access=ControlAccessSettings(key_files=("keys.yaml",)),
        provider_keys={"MY_KEY": "https://api.example/v1"},
        source_folders=(str(tmp_path),),
    )
    check_permitted(job, DriverSettings())  # one's own machine
    if problem:
        with pytest.raises(BadSettings, match=problem):
            check_permitted(job, settings)
    else:
        check_permitted(job, settings)


async def test_what_is_not_permitted_is_refused_over_http(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool, access={"key_files": ("keys.yaml",)})
    provider = {"base_url": "https://evil.example/v1", "model": "m", "api_key_env": "HOME"}
    body = {"prompt": "x", "provider": provider}
    async with await serve(jobs, pool) as client:
        answers = [
            await client.post("/", json={**body, "rows": [{"custom_id": "1"}]}),
            await client.post("/", data={"spec": json.dumps(body)}, files={"file": ("rows.csv", b"x\n1\n")}),
        ]
        assert [answer.status_code for answer in answers] == [400, 400]
        assert (await client.get("/")).json()["data"] == []


def test_a_block_ends_after_so_many_rows_or_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LARGEST_BLOCK_CHARACTERS", 10)
    long, short = Row("l", prompt="x" * 9), Row("s", messages=({"role": "user", "content": "x"},))
    left = iter([long, short, short, short, short])
    taken: list[tuple[int, bool]] = []
    while not taken or not taken[-1][1]:
        some, last = run._take(left, 2)
        taken.append((len(some), last))
    assert taken == [(2, False), (2, False), (1, True)]
    assert run._take(iter([long, long, long]), 100) == ([long, long], False)


async def serve(jobs: Jobs, pool: FakePool) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(build_app(jobs, pool)), base_url="http://test")


async def test_the_control_routes_speak_of_errors_as_openai_does(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    async with await serve(jobs, pool) as client:
        missing = await client.get("/nope")
        assert missing.status_code == 404
        assert missing.json()["error"]["type"] == "invalid_request_error"
        for body, told in (
            ({"rows": [{}], "lables": ["Yes"]}, "lables"),
            ({}, "give one of rows, source and generator"),
            ({"source": "job:manifest.json"}, "source: 'job:' names an uploaded file"),
            ({"source": "/nowhere/rows.csv"}, "/nowhere/rows.csv"),
            ({"rows": [{"custom_id": "1", "prompt": "x"}], "prompt": "{custom_id.__class__}"}, "prompt"),
        ):
            wrong = await client.post("/", json=body)
            assert wrong.status_code == 400, body
            assert told in wrong.json()["error"]["message"]
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
