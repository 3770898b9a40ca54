"""Requests and answers on their way through, and what breaks them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from serve_app.errors import EngineFailed
from serve_app.serving.gate.key_file import create_key
from serve_app.serving.requests.asgi import HttpRequest
from tests.serving.models.kit import SCOPE, Cluster, until


async def test_where_keys_are_set_all_needs_one_before_its_body_is_read_or_a_replica_asked(
    cluster: Cluster, tmp_path: Path
) -> None:
    key = {"Authorization": f"Bearer {create_key(tmp_path / 'keys.json', 'me')}"}
    cluster.configure(key_files=[str(tmp_path / "keys.json")])
    for path in ("/v1/models", "/v1/models/small"):
        assert (await cluster.get(path)).status_code == 401
        assert (await cluster.get(path, headers=key)).status_code == 200
    assert (await cluster.post({"model": "nobody's"})).status_code == 401
    assert (await cluster.post({"model": "nobody's"}, headers=key)).status_code == 404
    assert (await cluster.post({"model": "large"}, headers=key)).status_code == 207
    before = len(cluster.handles["a"].calls) + len(cluster.handles["b"].calls)
    for path in ("/v1/chat/completions", "/v1/audio/transcriptions", "/tokenize"):
        assert (await cluster.post({"model": "large"}, path)).status_code == 401
    assert len(cluster.handles["a"].calls) + len(cluster.handles["b"].calls) == before
    assert (await cluster.get("/health")).status_code == 207  # the replicas' to answer, as probes have no keys


async def test_a_keyless_request_is_refused_while_its_body_is_still_to_come(cluster: Cluster, tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "me")
    cluster.configure(key_files=[str(tmp_path / "keys.json")])
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    await cluster.app({**SCOPE, "path": "/v1/chat/completions", "root_path": ""}, receive, send)
    assert sent[0]["status"] == 401


# --- sessions ---


@pytest.mark.parametrize(
    ("headers", "body", "session"),
    [
        ({}, {}, ""),
        ({"X-Session-Id": "s1"}, {}, "s1"),
        ({"x_session_id": "s1"}, {"prompt_cache_key": "k"}, "s1"),
        ({}, {"prompt_cache_key": "k"}, "k"),
        ({}, {"prompt_cache_key": {"no": "text"}}, ""),
    ],
)
async def test_the_handle_is_told_the_session(
    cluster: Cluster, headers: dict[str, str], body: dict[str, Any], session: str
) -> None:
    await cluster.post({"model": "large", **body}, headers=headers)
    assert cluster.handles["b"].sessions == [session]


# --- there and back ---


async def test_request_and_answer_pass_as_they_came(cluster: Cluster) -> None:
    body = json.dumps({"model": "large", "x": [1.0, "ü"]}, indent=3).encode()
    sent = {"Authorization": "Bearer k", "X-Data": "1", "Content-Type": "application/json"}
    answer = await cluster.post(body, "/v1/any%2Fthing?q=1&q=2", headers=sent)
    ((path, got, headers),) = cluster.b.asked
    assert (path, got) == ("/v1/any/thing", body)
    assert {headers[name.lower()] for name in sent} == set(sent.values())
    assert answer.status_code == 207
    assert answer.content == body
    assert answer.headers["x-query"] == "q=1&q=2"
    assert answer.headers["content-type"].startswith("text/odd")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert int(answer.headers["content-length"]) == len(body)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.floats())),
       cuts=st.integers(1, 7))  # fmt: skip
async def test_any_body_in_any_parts_arrives_whole_at_the_model_it_names(
    cluster: Cluster, fields: dict[str, Any], cuts: int
) -> None:
    body = json.dumps({**fields, "model": "large"}).encode()
    size = -(-len(body) // cuts)

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async with cluster.client() as client:
        answer = await client.post("/v1/x", content=parts())
    assert (answer.content, answer.headers["x-from"]) == (body, "large")


async def test_a_body_that_is_too_large_is_refused_before_it_is_read_to_its_end(cluster: Cluster) -> None:
    read = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b" " * 1000

    async with cluster.client() as client:
        answer = await client.post("/v1/x", content=parts())
    assert answer.status_code == 413
    assert "100000 bytes" in answer.json()["error"]["message"]
    assert read <= 102
    assert cluster.a.asked == []


async def test_bodies_are_held_up_to_their_bytes_together(cluster: Cluster) -> None:
    cluster.configure(max_inflight_bytes=100_000)
    read, go_on = asyncio.Event(), asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield json.dumps({"model": "large", "text": "x" * 60_000}).encode()
        read.set()
        await go_on.wait()

    large = json.dumps({"model": "large", "text": "y" * 50_000}).encode()
    async with cluster.client() as client:
        first = asyncio.create_task(client.post("/v1/x", content=parts()))
        await read.wait()
        refused = await client.post("/v1/x", content=large)
        small = await client.post("/v1/x", content=b'{"model": "large"}')
        go_on.set()
        assert (await first).is_success
        assert (await client.post("/v1/x", content=large)).is_success
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "max_inflight_bytes" in refused.json()["error"]["message"]
    assert small.is_success


async def test_an_answer_streams(cluster: Cluster) -> None:
    async with cluster.served() as client, client.stream("POST", "/v1/stream", json={"model": "large"}) as answer:
        lines = answer.aiter_lines()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert await anext(lines) == "data: one"
        cluster.b.go_on.set()
        assert [line async for line in lines if line] == ["data: two"]
    await until(lambda: cluster.handles["b"].calls[0].task.done())
    assert not cluster.handles["b"].calls[0].cancelled


async def test_a_client_that_leaves_amid_a_stream_aborts_it_at_the_replica(cluster: Cluster) -> None:
    async with cluster.served() as client:
        async with client.stream("POST", "/v1/stream", json={"model": "large"}) as answer:
            assert await anext(answer.aiter_lines()) == "data: one"
        await until(lambda: cluster.b.left == ["stream"])
        assert cluster.handles["b"].calls[0].cancelled


async def test_a_client_that_leaves_before_the_answer_aborts_it_at_the_replica(cluster: Cluster) -> None:
    async with cluster.served() as client:
        call = asyncio.create_task(client.post("/v1/wait", json={"model": "large"}))
        await until(lambda: bool(cluster.handles["b"].calls))
        call.cancel()
        await until(lambda: cluster.b.left == ["wait"])


async def test_a_request_that_serve_cancels_is_aborted_at_the_replica(cluster: Cluster) -> None:
    body = [b'{"model": "large"}']

    async def receive() -> dict[str, Any]:
        if not body:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body.pop()}

    async def send(message: Any) -> None:
        raise AssertionError("nothing was answered")

    call = asyncio.create_task(cluster.app({**SCOPE, "path": "/v1/wait"}, receive, send))
    await until(lambda: bool(cluster.handles["b"].calls))
    call.cancel()
    await until(lambda: cluster.b.left == ["wait"])
    assert call.cancelled() or call.done()


async def test_an_application_that_fails_answers_for_itself(cluster: Cluster) -> None:
    answer = await cluster.post({"model": "large"}, "/v1/broken")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (ActorDiedError(), 503, "5"),
        (EngineFailed("it died"), 503, "5"),
        (BackPressureError(9, 8, 429, 7.0), 429, "7"),
        (ValueError("odd\nlong story"), 500, None),
        (asyncio.CancelledError(), 503, "5"),
    ],
    ids=str,
)
async def test_a_call_that_fails_before_the_answer_is_an_error_in_openais_shape(
    cluster: Cluster, error: BaseException, status: int, retry_after: str | None
) -> None:
    async def fail(request: HttpRequest) -> AsyncIterator[Any]:
        raise error
        yield

    cluster.handles["b"].fault = fail
    answer = await cluster.post({"model": "large"})
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert "\n" not in told["message"]


async def test_an_answer_that_ends_half_way_breaks_the_connection(cluster: Cluster) -> None:
    async def half(request: HttpRequest) -> AsyncIterator[Any]:
        yield [{"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}]
        yield [{"type": "http.response.body", "body": b"data: one\n\n", "more_body": True}]
        raise ActorDiedError()

    cluster.handles["b"].fault = half
    async with cluster.served() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/x", json={"model": "large"})
    sent, body = [], [b'{"model": "large"}']

    async def receive() -> dict[str, Any]:
        if not body:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body.pop()}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    with pytest.raises(ActorDiedError):
        await cluster.app({**SCOPE, "path": "/v1/x"}, receive, send)
    assert sent == ["http.response.start", "http.response.body"]


async def test_websockets_are_refused(cluster: Cluster) -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await cluster.app({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send)  # type: ignore[arg-type]
    assert sent == ["websocket.close"]
