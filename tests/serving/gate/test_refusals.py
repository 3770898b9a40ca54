"""Limits of requests, tokens, bodies and time, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.serving.gate import exchange as exchange_module
from serve_app.serving.gate.key_file import create_key
from tests.serving.gate.kit import Site, error, lines


class Caller:
    """A client that calls the gate by ASGI messages, and takes `read_s` for each after the first."""

    def __init__(self, site: Site, path: str, *, read_s: float = 0) -> None:
        self.messages: list[Any] = []
        self.left = asyncio.Event()
        self._body = [b"{}"]
        self._read_s = read_s
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": path,
            "query_string": query.encode(),
            "headers": [(b"authorization", b"Bearer " + site.key.encode()), (b"content-type", b"application/json")],
        }
        self.call = asyncio.create_task(site.gate(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._body:
            body = self._body.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._body)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self._read_s and self.messages:
            await asyncio.sleep(self._read_s)
        self.messages.append(message)

    async def wait_for(self, messages: int) -> None:
        async with asyncio.timeout(5):
            while len(self.messages) < messages:
                await asyncio.sleep(0.001)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def complete(self) -> bool:
        last = self.messages[-1]
        return last["type"] == "http.response.body" and not last.get("more_body", False)


# --- limits ---


async def test_requests_beyond_a_key_s_limit_get_429_and_are_told_when_to_come_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    key = create_key(site.file, "small", requests_per_minute=2)
    answers = [await site.post(key=key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[0].headers["x-ratelimit-reset-requests"].startswith("1m")
    assert (error(answers[2])["type"], error(answers[2])["code"]) == ("requests", "rate_limit_exceeded")
    assert 55 <= int(answers[2].headers["retry-after"]) <= 61
    assert (await site.post()).status_code == 200  # another key
    async with site.client(key) as client:
        assert (await client.get("/v1/jobs/1")).status_code == 200  # asking how things stand is free


async def test_tokens_are_charged_when_the_answer_ends_and_then_refuse(tmp_path: Path) -> None:
    site = Site(tmp_path)
    key = create_key(site.file, "small", tokens_per_minute=20)
    answers = [await site.post(key=key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert site.remote.charged == [("small", 12), ("small", 12)]
    assert [answer.headers["x-ratelimit-remaining-tokens"] for answer in answers] == ["20", "8", "0"]
    assert (error(answers[2])["type"], error(answers[2])["code"]) == ("tokens", "rate_limit_exceeded")


async def test_a_full_replica_says_429_and_takes_requests_again_when_one_ends(tmp_path: Path) -> None:
    site = Site(tmp_path, max_inflight_requests=1)
    first = Caller(site, "/v1/stream?hold=1")
    await first.wait_for(2)
    full = await site.post()
    assert (full.status_code, full.headers["retry-after"], error(full)["code"]) == (429, "1", "overloaded")
    async with site.client() as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/jobs/1")).status_code == 200
    first.left.set()
    await first.call
    assert (await site.post()).status_code == 200


@pytest.mark.parametrize("announce", [True, False])
async def test_a_body_that_is_too_large_is_refused_as_soon_as_it_can_be_known(tmp_path: Path, announce: bool) -> None:
    site = Site(tmp_path, max_body_bytes=1000)
    pieces = 0

    async def content() -> AsyncIterator[bytes]:
        nonlocal pieces
        for _ in range(100):
            pieces += 1
            yield b"x" * 100

    headers = {"content-length": "10000"} if announce else {}
    async with site.client() as client:
        answer = await client.post("/v1/chat/completions", content=content(), headers=headers)
    assert (answer.status_code, error(answer)["code"]) == (413, "request_too_large")
    assert pieces == (0 if announce else 11)
    assert (await site.post(content=b"x" * 1000, json=None)).status_code == 200


async def test_a_prompt_that_is_too_long_is_refused_in_openai_s_words_not_the_engine_s(tmp_path: Path) -> None:
    answer = await Site(tmp_path, max_prompt_tokens=999).post("/v1/long-prompt")
    assert (answer.status_code, error(answer)["code"]) == (400, "context_length_exceeded")
    assert "1000" in error(answer)["message"]
    assert (await Site(tmp_path / "other", max_prompt_tokens=1000).post("/v1/long-prompt")).status_code == 200


# --- time, and clients that leave ---


async def test_a_request_that_is_not_answered_in_time_gets_504_and_is_aborted(tmp_path: Path) -> None:
    site = Site(tmp_path, request_timeout_s=0.05)
    answer = await site.post("/v1/hold")
    assert (answer.status_code, error(answer)["code"]) == (504, "request_timeout")
    assert site.app.state.aborted == 1


async def test_a_stream_that_runs_out_of_time_ends_with_an_error_event_and_is_aborted(tmp_path: Path) -> None:
    site = Site(tmp_path, request_timeout_s=0.2)
    caller = Caller(site, "/v1/stream?hold=1")
    await caller.call
    assert caller.status == 200
    assert caller.complete
    last = caller.body.decode().strip().rpartition("data: ")[2]
    assert json.loads(last)["error"]["code"] == "request_timeout"
    assert site.app.state.aborted == 1


async def test_another_answer_that_runs_out_of_time_is_left_unfinished_so_that_nobody_takes_it_for_whole(
    tmp_path: Path,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/csv")]})
        await send({"type": "http.response.body", "body": b"a,b\n", "more_body": True})
        await asyncio.Event().wait()

    site = Site(tmp_path, app, request_timeout_s=0.05)
    exchange_module.ABORT_S, before = 0.05, exchange_module.ABORT_S
    try:
        caller = Caller(site, "/v1/export")
        await asyncio.wait_for(caller.call, 5)  # though the application heeds no disconnect
    finally:
        exchange_module.ABORT_S = before
    assert caller.body == b"a,b\n"
    assert not caller.complete


@pytest.mark.parametrize("path", ["/v1/hold", "/v1/stream?hold=1"])
@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_client_that_leaves_has_its_request_aborted_however_serve_says_it(
    tmp_path: Path, path: str, cancelled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path)
    with caplog.at_level(logging.INFO, "serve_app.request"):
        caller = Caller(site, path)
        await asyncio.sleep(0.02)
        if cancelled:  # Serve's proxy cancels the call
            caller.call.cancel()
        else:
            caller.left.set()
        await asyncio.wait({caller.call}, timeout=5)
    assert caller.call.cancelled() == cancelled
    assert site.app.state.aborted == 1
    assert [(line["status"], line["client_left"]) for line in lines(caplog)] == [(499, True)]


async def test_a_client_that_does_not_read_is_dropped_and_one_that_reads_slowly_is_not(tmp_path: Path) -> None:
    site = Site(tmp_path, write_timeout_s=0.05)
    stuck = Caller(site, "/v1/stream?events=100", read_s=60)
    await asyncio.wait_for(stuck.call, 5)
    assert len(stuck.messages) == 1
    assert site.app.state.aborted == 1
    slow = Caller(site, "/v1/stream?events=20", read_s=0.01)
    await asyncio.wait_for(slow.call, 5)
    assert slow.complete
    assert slow.body.count(b"data") == 20


async def test_an_application_s_own_error_is_passed_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug")

    site = Site(tmp_path, broken)
    with caplog.at_level(logging.INFO, "serve_app.request"), pytest.raises(RuntimeError, match="a bug"):
        await site.post()
    assert [line["status"] for line in lines(caplog)] == [500]
