"""Chunks of HTTP requests, answered by a small application that behaves as vLLM's does."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, Completion
from serve_app.serving.requests import http_rows
from serve_app.serving.requests.http_rows import answer_requests, prepare
from tests.fakes import in_order

PATH = "/v1/chat/completions"


class FakeEngine:
    """Its application echoes what it was asked; a body's `status` is what it answers with."""

    def __init__(self) -> None:
        self.healthy = True
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.busy = 0
        self.hold = asyncio.Event()
        self.aborted = 0
        self.app = FastAPI()
        self.app.post(PATH)(self.chat)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        if not isinstance(body, dict):
            return JSONResponse({"error": {"message": "not an object"}}, status_code=400)
        self.asked.append((dict(request.headers), body))
        if self.busy:
            self.busy -= 1
            return JSONResponse({"error": {"message": "queue is full"}}, status_code=503)
        if body.get("hold"):
            work = asyncio.ensure_future(self.hold.wait())
            while not work.done() and not await request.is_disconnected():
                await asyncio.sleep(0.001)
            self.aborted += not work.done()
            work.cancel()
        if body.get("raise"):
            raise RuntimeError("engine is dead")
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
        return JSONResponse({"model": body["model"], "usage": usage}, status_code=body.get("status", 200))

    async def check_health(self) -> None:
        if not self.healthy:
            raise EngineFailed("the engine died")

    def answers(self, *bodies: dict[str, Any] | bytes, priority: int = 10) -> AsyncGenerator[dict[int, Completion]]:
        prompts = tuple(body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies)
        chunk = Chunk(1, prompts, priority=priority, path=PATH)
        return answer_requests(self.app, chunk, model="served", check_health=self.check_health)

    async def answer(self, *bodies: dict[str, Any] | bytes, priority: int = 10) -> tuple[Completion, ...]:
        return in_order([completions async for completions in self.answers(*bodies, priority=priority)])


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


async def test_each_row_gets_the_whole_response_in_order_with_its_token_counts(engine: FakeEngine) -> None:
    first, second = await engine.answer({"model": "a"}, {"model": "b"})
    assert first.response
    assert second.response
    assert json.loads(first.response.body)["model"] == "a"
    assert json.loads(second.response.body)["model"] == "b"
    assert (first.status, first.response.status_code) == ("ok", 200)
    assert (first.prompt_tokens, first.cached_tokens, first.completion_tokens) == (7, 4, 3)
    assert first.latency_ms > 0
    assert [headers["x-request-id"] for headers, _ in engine.asked] == [c.response.request_id for c in (first, second)
                                                                        if c.response]  # fmt: skip


async def test_a_row_has_the_drivers_priority_whatever_it_asks_for_and_the_served_model_if_it_names_none(
    engine: FakeEngine,
) -> None:
    await engine.answer({"model": "mine", "priority": -5, "seed": 7}, {"messages": []}, {"model": None}, priority=10)
    bodies = [body for _, body in engine.asked]
    assert [(body["model"], body["priority"]) for body in bodies] == [("mine", 10), ("served", 10), ("served", 10)]
    assert bodies[0]["seed"] == 7


def test_all_that_a_body_says_else_stays_as_it_came() -> None:
    body = b'{"model":"m", "x":{"a": 1.50, "a":2 },"big":123456789012345678901234567890,"text":"\\u00e9\\ud83d\\ude00"}'
    prepared = prepare(body, model="served", priority=3)
    assert isinstance(prepared, bytes)
    kept = b'{"a": 1.50, "a":2 }', b"123456789012345678901234567890", b'"\\u00e9\\ud83d\\ude00"'
    for part in (*kept, b'"priority":3'):
        assert part in prepared


@pytest.mark.parametrize("field", ["stream", "background"])
async def test_a_row_that_wants_no_whole_answer_is_refused_without_asking(engine: FakeEngine, field: str) -> None:
    refused, taken = await engine.answer({"model": "m", field: True}, {"model": "m", field: False})
    assert refused.response
    assert (refused.status, refused.response.status_code) == ("invalid", 400)
    assert json.loads(refused.response.body)["error"]["param"] == field
    assert taken.status == "ok"
    assert len(engine.asked) == 1


async def test_what_the_application_refuses_is_invalid_with_its_own_words(engine: FakeEngine) -> None:
    (refused,) = await engine.answer({"model": "m", "status": 404})
    assert refused.response
    assert (refused.status, refused.response.status_code) == ("invalid", 404)
    assert json.loads(refused.response.body)["model"] == "m"


async def test_a_body_that_is_no_object_is_left_to_the_application_to_refuse(engine: FakeEngine) -> None:
    (refused,) = await engine.answer(b"[1, 2]")
    assert refused.status == "invalid"


@pytest.mark.parametrize("status", [500, 502, 401, 408])
async def test_a_server_error_or_a_closed_door_fails_the_row_for_another_attempt(
    engine: FakeEngine, status: int
) -> None:
    failed, good = await engine.answer({"model": "m", "status": status}, {"model": "m"})
    assert failed.status == "failed"
    assert str(status) in (failed.error or "")
    assert failed.response is None
    assert good.status == "ok"


async def test_an_application_that_raises_fails_only_that_row_while_the_engine_lives(engine: FakeEngine) -> None:
    failed, good = await engine.answer({"model": "m", "raise": True}, {"model": "m"})
    assert (failed.status, good.status) == ("failed", "ok")
    assert "HTTP 500" in (failed.error or "")


async def test_rows_that_fail_because_the_engine_died_are_lost_and_what_was_answered_is_not(engine: FakeEngine) -> None:
    engine.healthy = False
    rows = engine.answers({"model": "m", "status": 500}, {"model": "m"}, {"model": "m", "hold": True})
    assert [*await anext(rows)] == [1]
    with pytest.raises(EngineFailed, match="the engine died"):
        await anext(rows)
    assert engine.aborted == 1
    assert (await engine.answer({"model": "m"}))[0].status == "ok"  # nobody asks for health without a failure


async def test_a_row_is_there_before_a_slower_one(engine: FakeEngine) -> None:
    async with aclosing(engine.answers({"model": "m", "hold": True}, {"model": "m"})) as rows:
        assert [*await asyncio.wait_for(anext(rows), 5)] == [1]
        engine.hold.set()
        assert [*await asyncio.wait_for(anext(rows), 5)] == [0]


async def test_an_engine_that_is_full_is_asked_again_for_a_while(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_rows, "PAUSES_S", (0.0, 0.0))
    engine.busy = 2
    (late,) = await engine.answer({"model": "m"})
    assert late.status == "ok"
    engine.busy = 3
    (never,) = await engine.answer({"model": "m"})
    assert never.status == "failed"
    assert "queue is full" in (never.error or "")


async def test_rows_are_asked_together_and_a_cancelled_chunk_aborts_them_all(engine: FakeEngine) -> None:
    chunk = asyncio.create_task(engine.answer(*[{"model": "m", "hold": True}] * 20))
    while len(engine.asked) < 20:
        await asyncio.sleep(0.001)
    chunk.cancel()
    with pytest.raises(asyncio.CancelledError):
        await chunk
    assert engine.aborted == 20
