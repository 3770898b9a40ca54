"""Batches over fake replicas whose HTTP application is real: everything but the engine, the disk included."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Batch

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.driver.batches.files import FileStore
from serve_app.driver.batches.record import BatchRequest, Record, batch_id_of, job_id_of
from serve_app.driver.batches.registry import Batches
from serve_app.driver.batches.routes import batches_app
from serve_app.driver.http.results import stream_results
from serve_app.driver.jobs.job import dispatch_settings
from serve_app.driver.jobs.registry import Jobs
from serve_app.driver.sources.requests import Line, Problem, RequestRows, read_line
from serve_app.driver.sources.source import check_ids, open_source
from serve_app.driver.store.store import JobStore
from serve_app.errors import BadSettings, JobConflict, JobNotFound
from serve_app.schema import Chunk, ChunkResult, Completion
from serve_app.serving.requests.http_rows import answer_requests
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec
from tests.fakes import FakePool

CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


def engine_app() -> FastAPI:
    """Answers as vLLM does, in what matters here; `status` in a body is what it is answered with."""
    app = FastAPI()

    @app.post(CHAT)
    async def chat(request: Request) -> JSONResponse:
        body = await request.json()
        if body["model"] != "fake":
            error = {"message": f"The model `{body['model']}` does not exist.", "type": "NotFoundError", "code": 404}
            return JSONResponse({"error": error}, status_code=404)
        text = body["messages"][-1]["content"]
        choice = {"index": 0, "message": {"role": "assistant", "content": text.upper()}, "finish_reason": "stop"}
        details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, **details}
        answer = {"id": "chatcmpl-1", "model": "fake", "choices": [choice], "usage": usage, "seen": body}
        return JSONResponse(answer, status_code=body.get("status", 200))

    return app


class HttpPool(FakePool):
    """Fake replicas with that application."""

    def __init__(self, names: list[str], **faults: Any) -> None:
        super().__init__(names, **faults)
        self.app = engine_app()

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        result = await super().run(replica_id, chunk)
        if not chunk.path:
            return result
        completions = await answer_requests(self.app, chunk, model="fake", check_health=self.check_health)
        return msgspec.structs.replace(result, completions=completions)

    def _answer(self, prompt: bytes, chunk: Chunk) -> Completion:
        return Completion() if chunk.path else super()._answer(prompt, chunk)

    async def check_health(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Driver:
    """One driver's life over a store that may outlive it."""

    def __init__(self, jobs: Jobs, batches: Batches, files: FileStore) -> None:
        self.jobs, self.batches, self.files = jobs, batches, files

    def upload(self, *lines: Any, purpose: str = "batch") -> str:
        content = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        return self.files.add(io.BytesIO(content), "in.jsonl", purpose).id

    async def create(self, *lines: Any, **fields: Any) -> str:
        asked = {"input_file_id": self.upload(*lines), "endpoint": CHAT, "completion_window": "24h", **fields}
        return str((await self.batches.create(BatchRequest.model_validate(asked)))["id"])

    async def ended(self, batch_id: str) -> dict[str, Any]:
        while (batch := await self.batches.retrieve(batch_id))["status"] not in ENDED:
            await asyncio.sleep(0.01)
        Batch.model_validate(batch, strict=True)
        return batch

    async def reaches(self, batch_id: str, done: int) -> None:
        while (await self.batches.retrieve(batch_id))["request_counts"]["completed"] < done:
            await asyncio.sleep(0.002)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        return [json.loads(line) for line in b"".join(self.files.content(file_id)).splitlines()]

    async def die(self) -> None:
        await self.batches.close()
        await self.jobs.close()


MakeDriver = Callable[..., Awaitable[Driver]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeDriver]:
    monkeypatch.setattr("serve_app.driver.batches.run.POLL_S", 0.01)
    store = str(tmp_path / "runs")
    async with AsyncExitStack() as stack:

        async def driver(pool: FakePool, **settings: Any) -> Driver:
            fast = {"chunk_rows": 8, "window_rows": 16, "max_window_rows": 16, "commit_seconds": 0.01}
            sizes = DriverSettings(**{"store": store, **fast, **settings})
            dispatcher = Dispatcher(pool, replace(dispatch_settings(sizes), refresh_s=0.02))
            jobs = Jobs(sizes, await stack.enter_async_context(dispatcher))
            files = FileStore(store, now=clock)
            made = Driver(jobs, Batches(store, jobs, files=files, now=clock), files)
            stack.push_async_callback(made.die)
            return made

        yield driver


def ask(custom_id: Any, text: str = "hi", **body: Any) -> dict[str, Any]:
    asked = {"model": "fake", "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked}


def many(count: int) -> list[dict[str, Any]]:
    return [ask(f"r{i}", f"text {i}") for i in range(count)]


# --- what comes out ---


async def test_each_request_is_answered_with_the_engines_whole_response(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a", "b"]))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    odd = ask("odd é\u2028", "x\u2028y", n=2, seed=7, tools=tools, stop=["."], logprobs=True)
    batch = await driver.ended(await driver.create(*many(40), odd, metadata={"mine": "1"}))
    assert (batch["status"], batch["error_file_id"], batch["errors"]) == ("completed", None, None)
    assert batch["request_counts"] == {"total": 41, "completed": 41, "failed": 0}
    assert (batch["metadata"], batch["model"]) == ({"mine": "1"}, "fake")
    lines = {line["custom_id"]: line for line in driver.lines(batch["output_file_id"])}
    assert set(lines) == {f"r{i}" for i in range(40)} | {"odd é\u2028"}
    assert len({line["id"] for line in lines.values()}) == 41
    for i in range(40):
        response = lines[f"r{i}"]["response"]
        assert lines[f"r{i}"]["error"] is None
        assert response["status_code"] == 200
        assert response["body"]["choices"][0]["message"]["content"] == f"TEXT {i}"
    seen = lines["odd é\u2028"]["response"]["body"]["seen"]
    assert seen == {**odd["body"], "priority": 10}


async def test_usage_adds_up_what_the_responses_say(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    batch = await driver.ended(await driver.create(*many(10)))
    assert batch["usage"] == {
        "input_tokens": 50,
        "input_tokens_details": {"cached_tokens": 20},
        "output_tokens": 30,
        "output_tokens_details": {"reasoning_tokens": 10},
        "total_tokens": 80,
    }
    status = await driver.jobs.status(batch["id"].replace("_", "-"))
    assert (status.prompt_tokens, status.cached_tokens, status.completion_tokens) == (50, 20, 30)


async def test_a_bad_line_is_an_error_of_its_own_and_no_other_row_is_lost(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    bad: list[tuple[Any, str, str | None]] = [
        (b"{not json", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        ({"method": "POST", "url": CHAT, "body": {}}, "missing_required_parameter", None),
        (ask(7), "missing_required_parameter", None),
        (ask("good"), "duplicate_custom_id", "good"),
        ({**ask("url"), "url": "/v1/completions"}, "url_mismatch", "url"),
        ({**ask("get"), "method": "GET"}, "invalid_method", "get"),
        ({**ask("body"), "body": "text"}, "missing_required_parameter", "body"),
        (b'{"custom_id": "\\ud800", "method": "POST"}', "invalid_json_line", None),
        (ask("line-3-invalid"), "invalid_custom_id", None),
    ]
    lines = [ask("good"), b"", *(line for line, _, _ in bad), ask("also good")]
    batch = await driver.ended(await driver.create(*lines))
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 12, "completed": 2, "failed": 10})
    assert {line["custom_id"] for line in driver.lines(batch["output_file_id"])} == {"good", "also good"}
    errors = sorted(driver.lines(batch["error_file_id"]), key=lambda line: int(line["error"]["line"]))
    assert [(line["error"]["line"], line["error"]["code"], line["custom_id"]) for line in errors] == [
        (number, code, custom_id) for number, (_, code, custom_id) in enumerate(bad, 3)
    ]
    assert all(line["response"] is None and line["error"]["message"] for line in errors)


async def test_what_the_engine_refuses_is_in_the_error_file_with_its_own_words(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    lines = [ask("ok"), ask("model", model="gpt-6"), ask("stream", stream=True), ask("long", status=400)]
    batch = await driver.ended(await driver.create(*lines))
    assert batch["request_counts"] == {"total": 4, "completed": 1, "failed": 3}
    errors = {line["custom_id"]: line for line in driver.lines(batch["error_file_id"])}
    assert {name: line["response"]["status_code"] for name, line in errors.items()} == {
        "model": 404, "stream": 400, "long": 400,
    }  # fmt: skip
    assert all(line["error"] is None for line in errors.values())
    assert "gpt-6" in errors["model"]["response"]["body"]["error"]["message"]
    assert errors["stream"]["response"]["body"]["error"]["param"] == "stream"


async def test_a_row_that_every_attempt_fails_is_a_server_error_with_each_attempts_reason(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]), max_attempts=3)
    batch = await driver.ended(await driver.create(ask("ok"), ask("sick", status=500)))
    (line,) = driver.lines(batch["error_file_id"])
    assert (line["custom_id"], line["response"], line["error"]["code"]) == ("sick", None, "server_error")
    assert line["error"]["message"].count("HTTP 500") == 3


async def test_lost_replicas_cost_no_row_and_give_none_twice(make: MakeDriver) -> None:
    pool = HttpPool(["a", "b"], faults={"a": [True, False, True], "b": [False, True]})
    driver = await make(pool, min_rows_per_replica=10)
    batch = await driver.ended(await driver.create(*many(100)))
    ids = [line["custom_id"] for line in driver.lines(batch["output_file_id"])]
    assert sorted(ids) == sorted(f"r{i}" for i in range(100))


async def test_the_job_of_a_batch_has_its_responses_as_results_too(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    batch = await driver.ended(await driver.create(*many(3), b"bad"))
    job = driver.jobs.job(batch["id"].replace("_", "-"))
    rows = [json.loads(line) for line in b"".join(stream_results(job, "jsonl")).splitlines()]
    assert sorted(row["status"] for row in rows) == ["invalid", "ok", "ok", "ok"]
    header, *lines = b"".join(stream_results(job, "csv")).decode().splitlines()
    assert '"status_code","request_id","body"' in header
    assert sum('""content"":""TEXT' in line for line in lines) == 3


async def test_a_population_may_have_an_endpoint_and_rows_of_its_own(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    job_id = await driver.jobs.submit(JobSpec(endpoint=CHAT, rows=tuple(many(5))))
    while driver.jobs.running():
        await asyncio.sleep(0.01)
    assert [(o.value or {})["status_code"] for o in driver.jobs.job(job_id).outcomes()] == [200] * 5


@pytest.mark.parametrize("field", [{"prompt": "x"}, {"labels": ["a"]}, {"max_tokens": 3}, {"seed": 0}])
def test_what_a_body_says_cannot_be_said_of_all_rows_at_once(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"leave out {next(iter(field))}"):
        JobSpec(endpoint=CHAT, rows=tuple(many(1)), **field)


# --- states ---


async def test_a_batch_passes_through_its_states_with_their_times(make: MakeDriver, clock: Clock) -> None:
    pool = HttpPool([])
    driver = await make(pool)
    batch_id = await driver.create(*many(30))
    first = await driver.batches.retrieve(batch_id)
    assert (first["status"], first["in_progress_at"]) == ("validating", None)
    while (batch := await driver.batches.retrieve(batch_id))["status"] == "validating":
        await asyncio.sleep(0.01)
    assert (batch["status"], batch["request_counts"]["total"]) == ("in_progress", 30)
    clock.now += 100
    pool.names = ["a"]
    batch = await driver.ended(batch_id)
    assert (batch["created_at"], batch["expires_at"]) == (1_800_000_000, 1_800_086_400)
    assert (batch["in_progress_at"], batch["finalizing_at"]) == (1_800_000_000, 1_800_000_100)
    assert batch["completed_at"] == 1_800_000_100
    assert batch["failed_at"] is batch["expired_at"] is batch["cancelled_at"] is batch["cancelling_at"] is None


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (b"", [("empty_file", None)]),
        (b"\n \n", [("empty_file", None)]),
        (b"custom_id,text\n1,hello\n", [("invalid_json_line", 1), ("invalid_json_line", 2)]),
        (json.dumps({**ask("a"), "url": "/v1/embeddings"}).encode(), [("url_mismatch", 1)]),
    ],
)
async def test_a_file_without_any_request_fails_its_batch_and_says_why_line_by_line(
    make: MakeDriver, content: bytes, errors: list[tuple[str, int | None]]
) -> None:
    driver = await make(HttpPool(["a"]))
    batch = await driver.ended(await driver.create(content))
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
    assert batch["failed_at"] is not None
    assert [(error["code"], error["line"]) for error in batch["errors"]["data"]] == errors
    assert all(error["message"] for error in batch["errors"]["data"])


async def test_a_cancelled_batch_keeps_what_is_done_and_lists_the_rest(make: MakeDriver) -> None:
    pool = HttpPool(["a"])
    pool.hold_s = 0.05
    driver = await make(pool)
    batch_id = await driver.create(*many(100), b"bad")
    await driver.reaches(batch_id, 8)
    cancelling = await driver.batches.cancel(batch_id)
    assert cancelling["status"] == "cancelling"
    assert (await driver.batches.cancel(batch_id))["cancelling_at"] == cancelling["cancelling_at"]
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["cancelled_at"]) == ("cancelled", batch["cancelling_at"])
    done = [line["custom_id"] for line in driver.lines(batch["output_file_id"])]
    lost = [(line["custom_id"], line["error"]["code"]) for line in driver.lines(batch["error_file_id"])]
    assert 8 <= len(done) < 100
    assert sorted([*done, *(name for name, _ in lost if name)]) == sorted(f"r{i}" for i in range(100))
    assert [code for name, code in lost if name is None] == ["invalid_json_line"]
    assert {code for name, code in lost if name} == {"batch_cancelled"}
    assert batch["request_counts"] == {"total": 101, "completed": len(done), "failed": len(lost)}
    with pytest.raises(JobConflict, match="is cancelled"):
        await driver.batches.cancel(batch_id)


async def test_a_batch_that_is_not_done_when_its_window_ends_expires_with_what_is_done(
    make: MakeDriver, clock: Clock
) -> None:
    pool = HttpPool(["a"])
    pool.hold_s = 0.05
    driver = await make(pool)
    batch_id = await driver.create(*many(100), completion_window="1h")
    await driver.reaches(batch_id, 8)
    clock.now += 3599
    await asyncio.sleep(0.1)
    assert (await driver.batches.retrieve(batch_id))["status"] == "in_progress"
    clock.now += 1
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["expired_at"]) == ("expired", batch["expires_at"])
    done = {line["custom_id"] for line in driver.lines(batch["output_file_id"])}
    lost = {line["custom_id"]: line["error"]["code"] for line in driver.lines(batch["error_file_id"])}
    assert set(lost.values()) == {"batch_expired"}
    assert done.isdisjoint(lost)
    assert done | set(lost) == {f"r{i}" for i in range(100)}


async def test_a_batch_expires_though_no_replica_ever_came(make: MakeDriver, clock: Clock) -> None:
    driver = await make(HttpPool([]))
    batch_id = await driver.create(*many(5))
    clock.now += 86_400
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["output_file_id"]) == ("expired", None)
    assert len(driver.lines(batch["error_file_id"])) == 5


async def test_a_job_that_finds_no_replica_in_time_is_taken_up_again_within_the_window(
    make: MakeDriver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = HttpPool([])
    driver = await make(pool, replica_wait_s=0.05)
    batch_id = await driver.create(*many(5))
    job_id = batch_id.replace("_", "-")
    while (await driver.jobs.status(job_id)).state != "failed":
        await asyncio.sleep(0.01)
    clock.now += 400  # past any pause
    pool.names = ["a"]
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 5)


async def test_a_batch_whose_job_was_cancelled_as_a_population_is_cancelled(make: MakeDriver) -> None:
    driver = await make(HttpPool([]))
    batch_id = await driver.create(*many(5))
    await driver.jobs.cancel(batch_id.replace("_", "-"))
    assert (await driver.ended(batch_id))["status"] == "cancelled"


async def test_a_cancelled_batch_whose_input_was_deleted_keeps_what_is_done(make: MakeDriver) -> None:
    pool = HttpPool(["a"])
    pool.hold_s = 0.05
    driver = await make(pool)
    batch_id = await driver.create(*many(100))
    await driver.reaches(batch_id, 8)
    driver.files.delete((await driver.batches.retrieve(batch_id))["input_file_id"])
    await driver.batches.cancel(batch_id)
    batch = await driver.ended(batch_id)
    assert batch["status"] == "cancelled"
    assert len(driver.lines(batch["output_file_id"])) == batch["request_counts"]["completed"] >= 8


async def test_a_batch_that_cannot_go_on_without_its_deleted_input_fails_with_what_is_done(make: MakeDriver) -> None:
    pool = HttpPool(["a"])
    pool.hold_s = 0.05
    driver = await make(pool, replica_wait_s=0.2)
    batch_id = await driver.create(*many(100))
    await driver.reaches(batch_id, 8)
    driver.files.delete((await driver.batches.retrieve(batch_id))["input_file_id"])
    pool.names = []
    batch = await driver.ended(batch_id)
    assert batch["status"] == "failed"
    assert [error["code"] for error in batch["errors"]["data"]] == ["input_file_not_found"]
    assert 100 > len(driver.lines(batch["output_file_id"])) == batch["request_counts"]["completed"] >= 8


async def test_a_batch_whose_rows_are_all_done_is_completed_though_its_input_was_deleted(make: MakeDriver) -> None:
    pool = HttpPool([])
    driver = await make(pool)
    batch_id = await driver.create(*many(10))
    while (await driver.batches.retrieve(batch_id))["status"] == "validating":
        await asyncio.sleep(0.01)
    pool.hold_s = 0.2
    pool.names = ["a"]
    while not pool.served:
        await asyncio.sleep(0.01)
    driver.files.delete((await driver.batches.retrieve(batch_id))["input_file_id"])
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 10)


async def test_output_files_expire_when_the_batch_says(make: MakeDriver, clock: Clock) -> None:
    driver = await make(HttpPool(["a"]))
    expires = {"anchor": "created_at", "seconds": 7200}
    batch = await driver.ended(await driver.create(*many(2), b"bad", output_expires_after=expires))
    for file_id in (batch["output_file_id"], batch["error_file_id"]):
        stored = driver.files.get(file_id)
        assert (stored.purpose, stored.expires_at) == ("batch_output", clock.now + 7200)


# --- drivers come and go ---


async def left_behind(make: MakeDriver, *sizes: int) -> tuple[Driver, list[str]]:
    """A driver that died amid the last of its batches of so many requests, and all their ids."""
    pool = HttpPool(["a"])
    pool.hold_s = 0.02
    dead = await make(pool)
    batch_ids = [await dead.create(*many(size)) for size in sizes]
    await dead.reaches(batch_ids[-1], 8)
    await dead.die()
    return dead, batch_ids


async def test_a_batch_whose_driver_died_goes_on_with_the_next_one_and_no_row_is_twice(make: MakeDriver) -> None:
    _, (batch_id,) = await left_behind(make, 80)
    alive = await make(HttpPool(["a"]))
    await asyncio.gather(alive.jobs.recover(), alive.batches.recover())
    batch = await alive.ended(batch_id)
    ids = [line["custom_id"] for line in alive.lines(batch["output_file_id"])]
    assert sorted(ids) == sorted(f"r{i}" for i in range(80))


async def test_a_batch_whose_job_nobody_took_up_goes_on(make: MakeDriver) -> None:
    _, (batch_id,) = await left_behind(make, 40)
    alive = await make(HttpPool(["a"]))
    await alive.batches.recover()  # and not its jobs, as after a store that was away for long
    batch = await alive.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 40)


async def test_one_batch_that_cannot_be_read_does_not_keep_the_others_from_going_on(make: MakeDriver) -> None:
    dead, (unreadable, batch_id) = await left_behind(make, 8, 40)
    dead.jobs.job(job_id_of(unreadable)).put("batch.json", b"{")
    alive = await make(HttpPool(["a"]))
    recovering = asyncio.ensure_future(alive.batches.recover())
    assert (await alive.ended(batch_id))["status"] == "completed"
    recovering.cancel()


async def test_the_input_of_a_batch_lasts_as_long_as_the_batch(make: MakeDriver, clock: Clock) -> None:
    driver = await make(HttpPool(["a"]))
    stored = driver.files.add(io.BytesIO(json.dumps(ask("1")).encode()), "in.jsonl", "batch", expires_after_s=3600)
    request = BatchRequest(input_file_id=stored.id, endpoint=CHAT, completion_window="24h")
    batch = await driver.batches.create(request)
    assert driver.files.get(stored.id).expires_at >= batch["expires_at"] > clock.now + 3600


async def test_a_driver_that_dies_while_it_writes_the_files_leaves_one_of_each(
    make: MakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_app.driver.batches.record import save

    class Killed(BaseException):
        pass

    def save_but_die_at_the_end(job: JobStore, record: Record) -> None:
        if record.ended:
            raise Killed
        save(job, record)

    dead = await make(HttpPool(["a"]))
    with monkeypatch.context() as patch:
        patch.setattr("serve_app.driver.batches.run.save", save_but_die_at_the_end)
        batch_id = await dead.create(*many(5), b"bad")
        while len(dead.files.page(purpose="batch_output")[0]) < 2:
            await asyncio.sleep(0.01)
        assert (await dead.batches.retrieve(batch_id))["output_file_id"] is None
        await dead.die()
    alive = await make(HttpPool(["a"]))
    await asyncio.gather(alive.jobs.recover(), alive.batches.recover())
    batch = await alive.ended(batch_id)
    assert batch["status"] == "completed"
    written = {file.id for file in alive.files.page(purpose="batch_output")[0]}
    assert written == {batch["output_file_id"], batch["error_file_id"]}


async def test_a_batch_that_was_cancelled_just_before_its_driver_died_is_cancelled_by_the_next(
    make: MakeDriver,
) -> None:
    dead = await make(HttpPool([]))
    batch_id = await dead.create(*many(5))
    await dead.batches.cancel(batch_id)
    await dead.die()
    pool = HttpPool(["a"])
    alive = await make(pool)
    await alive.batches.recover()
    batch = await alive.ended(batch_id)
    assert batch["status"] == "cancelled"
    assert await alive.jobs.recover() == []


async def test_a_driver_that_has_just_started_can_cancel_a_batch_that_it_has_not_come_to(make: MakeDriver) -> None:
    dead = await make(HttpPool([]))
    batch_id = await dead.create(*many(5))
    await dead.die()
    alive = await make(HttpPool(["a"]))
    assert (await alive.batches.cancel(batch_id))["status"] == "cancelling"
    assert (await alive.ended(batch_id))["status"] == "cancelled"


async def test_ended_batches_are_not_followed_again(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    batch = await driver.ended(await driver.create(*many(2)))
    await driver.die()
    alive = await make(HttpPool(["a"]))
    await alive.batches.recover()
    assert await alive.batches.retrieve(batch["id"]) == batch
    with pytest.raises(JobConflict, match="is completed"):
        await alive.batches.cancel(batch["id"])


# --- over HTTP ---


async def serve(driver: Driver) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(batches_app(driver.batches), root_path="/v1/batches")
    return httpx.AsyncClient(transport=transport, base_url="http://test/v1")


async def test_a_batch_from_create_to_list_over_http(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    async with await serve(driver) as client:
        ids = []
        for _ in range(3):
            body = {"input_file_id": driver.upload(*many(2)), "endpoint": CHAT, "completion_window": "24h"}
            created = await client.post("/batches", json=body)
            assert created.status_code == 200, created.text
            ids.append(created.json()["id"])
            assert (await driver.ended(ids[-1]))["status"] == "completed"
        page = (await client.get("/batches", params={"limit": 2})).json()
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[:0:-1], True)
        rest = (await client.get("/batches", params={"limit": 2, "after": page["last_id"]})).json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[:1], False)
        assert (await client.get(f"/batches/{ids[0]}")).json() == rest["data"][0]
        late = await client.post(f"/batches/{ids[0]}/cancel")
        assert late.status_code == 409
        assert "is completed" in late.json()["error"]["message"]


async def test_a_wrong_request_is_refused_at_once_with_the_field_that_is_wrong(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    good = {"input_file_id": driver.upload(*many(2)), "endpoint": CHAT, "completion_window": "24h"}
    picture = driver.upload(b"x", purpose="vision")
    async with await serve(driver) as client:
        for change, param in (
            ({"endpoint": "/v1/moderations"}, "endpoint"),
            ({"completion_window": "soon"}, "completion_window"),
            ({"input_file_id": "file-nope"}, "input_file_id"),
            ({"input_file_id": picture}, "input_file_id"),
            ({"metadata": {"k": "v" * 513}}, "metadata"),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
            ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
            ({"unknown": 1}, "unknown"),
        ):
            answer = await client.post("/batches", json={**good, **change})
            assert answer.status_code == 400, change
            assert answer.json()["error"]["param"] == param
        assert (await client.get("/batches")).json()["data"] == []
        for path in ("/batches/batch_nope", f"/batches/batch_{'0' * 24}", "/batches/..%2Fx"):
            assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("metadata", [{}, {"batch": "mine"}])
async def test_an_ordinary_job_with_a_batchs_name_is_no_batch(make: MakeDriver, metadata: dict[str, str]) -> None:
    driver = await make(HttpPool(["a"]))
    job_id = f"batch-{'0' * 24}"
    await driver.jobs.submit(JobSpec(job_id=job_id, rows=({"custom_id": "1", "prompt": "x"},), metadata=metadata))
    assert await driver.batches.page() == ([], False)
    with pytest.raises(JobNotFound):
        await driver.batches.retrieve(batch_id_of(job_id))
    await driver.batches.recover()


async def test_calls_by_handle_raise_what_the_driver_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    from serve_app.driver.batches.deployment import HandleBatches
    from serve_app.errors import ServerUnavailable

    class Method:
        def __init__(self, error: Exception) -> None:
            self.error = error

        async def remote(self, call: str, *arguments: Any, **named: Any) -> Any:
            raise self.error

    class Handle:
        def __init__(self, error: Exception) -> None:
            self.batches = Method(error)

    raised = RayTaskError("batches", "a traceback", BadSettings("input_file_id: wrong"), "p", 1, "ip")
    with pytest.raises(BadSettings, match="^input_file_id: wrong$"):
        await HandleBatches(Handle(raised.as_instanceof_cause())).retrieve("batch_1")
    with pytest.raises(ServerUnavailable, match="the driver does not answer"):
        await HandleBatches(Handle(ActorDiedError())).page()


# --- lines ---


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([json.dumps(ask(i)).encode() for i in "abc"]))))
def test_any_bytes_are_rows_with_ids_of_their_own_and_good_lines_keep_theirs(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b" ") for line in lines]
    source = RequestRows(lambda: iter(line + b"\n" for line in lines), CHAT)
    rows = list(source.rows())
    assert len(rows) == sum(not (line + b"\n").isspace() for line in lines)
    assert len({row.custom_id for row in rows}) == len(rows)
    good = {row.custom_id for row in rows if row.error is None}
    assert good >= {i for i in "abc" if json.dumps(ask(i)).encode() in lines}
    assert list(source.ids()) == [row.custom_id for row in rows]
    check_ids(source)
    for start in range(len(rows) + 1):
        assert list(source.rows(start, start + 2)) == rows[start : start + 2]
    assert len(list(source.problems())) == len(rows) - len(good)


def test_a_body_is_kept_as_it_was_written() -> None:
    body = '{"model":"m", "x":{"a": 1.50},"big":123456789012345678901234567890,"text":"\\u00e9\\ud83d\\ude00"}'
    line = f'{{"body": {body} , "url":"{CHAT}","method":"POST","custom_id":"\\u00e9"}}'.encode()
    assert read_line(1, line, CHAT) == Line("é", body)


def test_a_line_that_is_too_long_is_refused_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.driver.sources.files.LONGEST_LINE", 200)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(json.dumps(line).encode() for line in (ask("long", "x" * 300), ask("ok"))))
    source = open_source(JobSpec(source=str(path), endpoint=CHAT), folder_url="unused")
    assert [row.custom_id for row in source.rows()] == ["line-1-invalid", "ok"]


def test_a_csv_file_is_no_file_of_requests(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("custom_id,body\n")
    with pytest.raises(BadSettings, match="format: requests are JSON lines"):
        open_source(JobSpec(source=str(tmp_path / "in.csv"), endpoint=CHAT), folder_url="unused")
    with pytest.raises(BadSettings, match="nowhere"):
        open_source(JobSpec(source=str(tmp_path / "nowhere.jsonl"), endpoint=CHAT), folder_url="unused")


def test_a_problem_names_its_line_and_field() -> None:
    problem = read_line(4, json.dumps({**ask("x"), "method": "GET"}).encode(), CHAT)
    assert isinstance(problem, Problem)
    assert msgspec.to_builtins(problem) == {
        "line": 4, "code": "invalid_method", "message": "method: only POST is supported", "param": "method",
        "custom_id": "x",
    }  # fmt: skip
