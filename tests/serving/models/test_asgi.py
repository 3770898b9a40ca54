"""An application answered as a value: whole, or as it comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import EngineFailed
from serve_app.serving.requests import asgi
from serve_app.serving.requests.asgi import forward, joined
from tests.serving.models.kit import Cluster, request


async def test_parts_of_an_answer_that_wait_together_travel_together(cluster: Cluster) -> None:
    taken = 0
    async for messages in forward(cluster.a.app, request("/v1/flood")):
        taken += 1
        body = messages[-1]
        await asyncio.sleep(0.001)
    assert taken < 100
    assert body == {"type": "http.response.body", "body": body["body"], "more_body": False}
    assert cluster.a.sent == 1000


async def test_an_application_is_held_back_while_nobody_takes_its_answer(cluster: Cluster) -> None:
    answer = forward(cluster.a.app, request("/v1/flood"))
    await anext(answer)
    for _ in range(2000):
        await asyncio.sleep(0)
    assert cluster.a.sent <= 2 * asgi.MAX_UNSENT_MESSAGES
    received = sum(len(message.get("body", b"")) for messages in [m async for m in answer] for message in messages)
    assert received <= 1000
    assert cluster.a.sent == 1000


async def test_an_application_that_waits_for_room_is_freed_when_its_answer_is_no_longer_wanted(
    cluster: Cluster,
) -> None:
    answer = forward(cluster.a.app, request("/v1/flood"))
    await anext(answer)
    await asyncio.sleep(0.01)
    async with asyncio.timeout(2):
        await answer.aclose()
    sent = cluster.a.sent
    await asyncio.sleep(0.01)
    assert cluster.a.sent == sent < 1000


async def test_an_application_that_ends_without_an_answer_is_an_error() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    for app in (silent, half):
        with pytest.raises(EngineFailed, match="without an answer"):
            _ = [messages async for messages in forward(app, request("/"))]


async def test_what_an_application_raises_after_its_answer_does_not_undo_the_answer(cluster: Cluster) -> None:
    messages = [message async for messages in forward(cluster.a.app, request("/v1/broken")) for message in messages]
    assert messages[0]["status"] == 500
    assert messages[-1]["body"] == b"Internal Server Error"


async def test_an_application_that_never_listens_is_told_by_its_send_that_its_client_left() -> None:
    told: list[type[BaseException]] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except BaseException as error:
            told.append(type(error))
            raise

    answer = forward(endless, request("/"))
    await anext(answer)
    await answer.aclose()
    assert told == [OSError]


async def test_one_that_hangs_although_its_client_left_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(asgi, "ABORT_S", 0.01)
    answer = forward(deaf, request("/"))
    await anext(answer)
    await answer.aclose()
    async with asyncio.timeout(2):
        await ended.wait()


@given(st.lists(st.binary(max_size=3), max_size=6))
def test_joined_bodies_hold_the_same_bytes(parts: list[bytes]) -> None:
    start = {"type": "http.response.start", "status": 200}
    bodies = [{"type": "http.response.body", "body": part, "more_body": True} for part in parts]
    first, body = joined([start, *bodies, {"type": "http.response.body"}])
    assert first == start
    assert body.get("body", b"") == b"".join(parts)
    assert not body.get("more_body", False)
    assert all(body["body"] == part for body, part in zip(bodies, parts, strict=True))
