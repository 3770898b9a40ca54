"""The gate around small applications: over HTTP by httpx, and message by message where the client misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from starlette.middleware.cors import CORSMiddleware

from serve_app.serving.gate import exchange as exchange_module
from serve_app.serving.gate.accounting import counting, current
from serve_app.serving.gate.key_file import create_key, revoke_key
from serve_app.serving.gate.limits import Counters, Standing, duration
from serve_app.serving.gate.middleware import Gate, read_key
from serve_app.serving.gate.request_metrics import RequestMetrics
from serve_app.serving.gate.shared_limits import SharedLimits
from serve_app.settings import AccessSettings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}


class LocalRemote:
    """The shared counters, here."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.charged: list[tuple[str, int]] = []

    async def admit(self, *limits: Any) -> Standing:
        return self.counters.admit(*limits)

    def charge(self, name: str, tokens: int) -> None:
        self.charged.append((name, tokens))
        self.counters.charge(name, tokens)


def build_app() -> FastAPI:
    """Answers as vLLM does where it matters: work that only `http.disconnect` ends, streams, errors of its own."""
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    app.state.aborted = 0

    async def generate(prompt: Any, params: Any, request_id: str, *, events: int, hold: bool) -> AsyncIterator[Any]:
        try:
            for number in range(events):
                yield SimpleNamespace(number=number, prompt_token_ids=[1], outputs=[])
                await asyncio.sleep(0)
            if hold:
                await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            app.state.aborted += 1
            raise

    @app.get("/health")
    async def health() -> str:
        return "up"

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, Any]:
        await request.body()
        account = current()
        if account is not None:
            account.add(7, 5)
        return {"id": request.headers["x-request-id"], "key": getattr(request.state, "api_key_name", None)}

    @app.post("/v1/hold")
    async def hold(request: Request) -> str | None:
        work = asyncio.create_task(asyncio.Event().wait())  # vLLM's handler, see `with_cancellation`
        await request.body()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        app.state.aborted += 1
        work.cancel()
        return None

    @app.post("/v1/stream")
    async def stream(request: Request, events: int = 3, hold: bool = False) -> StreamingResponse:
        outputs = counting(generate)({"prompt_token_ids": [1]}, None, "r", events=events, hold=hold)

        async def body() -> AsyncIterator[str]:
            async for output in outputs:
                yield f"data: {output.number}\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    @app.post("/v1/long-prompt")
    async def long_prompt() -> str:
        account = current()
        if account is not None:
            account.check_prompt(1000)
        return "taken"

    @app.exception_handler(ValueError)
    async def in_its_own_words(request: Request, error: ValueError) -> Any:
        return httpx_like_error()

    @app.get("/v1/jobs/{job_id}")
    async def job(job_id: str) -> str:
        return job_id

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    return app


def httpx_like_error() -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse({"error": {"message": "BadRequestError"}}, status_code=400)


class Site:
    """An application behind a gate, and keys to it."""

    def __init__(self, folder: Path, app: Any = None, *, keys: bool = True, echo: bool = True, **settings: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.file = folder / "keys.yaml"
        self.remote = LocalRemote()
        self.app = app or build_app()
        self.key = create_key(self.file, "alice")
        self.echo = echo
        self.settings = AccessSettings(key_files=(str(self.file),) if keys else (), **settings)

    @property
    def gate(self) -> Gate:
        """Made once, and after all keys."""
        if not hasattr(self, "_gate"):
            limits = SharedLimits(self.remote)
            self._gate = Gate(self.app, self.settings, "inference", limits=limits, echo_request_id=self.echo)
        return self._gate

    def client(self, key: str | None = None, **headers: str) -> httpx.AsyncClient:
        given = {"authorization": f"Bearer {key or self.key}"} if key != "" else {}
        transport = httpx.ASGITransport(self.gate)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers={**given, **headers})

    async def post(self, path: str = "/v1/chat/completions", key: str | None = None, **options: Any) -> httpx.Response:
        async with self.client(key) as client:
            return await client.post(path, **{"json": CHAT, **options})


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


def error(answer: httpx.Response) -> dict[str, Any]:
    fields: dict[str, Any] = answer.json()["error"]
    assert set(fields) == {"message", "type", "param", "code"}
    return fields


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "serve_app.request"]


# --- keys ---


async def test_a_key_opens_by_either_header_and_its_name_is_known_inside(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert (await site.post()).json()["key"] == "alice"
    async with site.client("", **{"x-api-key": site.key}) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_no_key_is_told_from_a_wrong_one_and_no_answer_repeats_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    missing, wrong = await site.post(key=""), await site.post(key="sk-wrong")
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert (error(missing)["type"], error(missing)["code"]) == ("invalid_request_error", None)
    assert (wrong.status_code, error(wrong)["code"]) == (401, "invalid_api_key")
    assert "www-authenticate" in wrong.headers
    assert "sk-wrong" not in wrong.text


async def test_revoked_and_expired_keys_are_refused_as_such(tmp_path: Path) -> None:
    site = Site(tmp_path)
    expired = create_key(site.file, "old", expires="2020-01-01T00:00:00Z")
    revoke_key(site.file, "alice")
    for key, state in ((site.key, "revoked"), (expired, "expired")):
        answer = await site.post(key=key)
        assert (answer.status_code, error(answer)["code"]) == (401, "invalid_api_key")
        assert state in error(answer)["message"]


async def test_a_key_without_the_scope_is_refused_with_403(tmp_path: Path) -> None:
    site = Site(tmp_path)
    answer = await site.post(key=create_key(site.file, "jobs", scopes=("populations",)))
    assert (answer.status_code, error(answer)["code"]) == (403, "insufficient_permissions")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/metrics", "/version", "/docs", "/tokenize", "/invocations"])
async def test_everything_but_probes_needs_a_key(tmp_path: Path, path: str) -> None:
    assert (await Site(tmp_path).post(path, key="")).status_code == 401


async def test_probes_and_preflights_need_no_key_and_other_options_do(tmp_path: Path) -> None:
    preflight = {"origin": "http://a", "access-control-request-method": "POST"}
    async with Site(tmp_path).client("") as client:
        assert (await client.get("/health")).status_code == 200
        answer = await client.options("/v1/chat/completions", headers=preflight)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        assert (await client.options("/v1/chat/completions")).status_code == 401


async def test_open_paths_are_those_behind_the_route_prefix(tmp_path: Path) -> None:
    site = Site(tmp_path, open_paths=("/open",))
    transport = httpx.ASGITransport(site.gate, root_path="/v1/populations")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v1/populations/open")).status_code == 404
        assert (await client.get("/open/v1/populations/open")).status_code == 401


async def test_without_key_files_all_may_and_a_warning_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, keys=False)
    with caplog.at_level(logging.WARNING):
        assert [(await site.post(key="")).status_code for _ in range(3)] == [200] * 3
    assert [r.getMessage() for r in caplog.records if "anybody" in r.getMessage()] != []
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


@given(st.dictionaries(st.sampled_from([b"authorization", b"x-api-key"]), st.binary(max_size=40)))
def test_no_header_however_odd_breaks_the_reading_of_keys(headers: dict[bytes, bytes]) -> None:
    assert isinstance(read_key(headers), str)


@pytest.mark.parametrize(("allowed", "expected"), [(True, "websocket.accept"), (False, "websocket.close")])
async def test_a_websocket_needs_a_key_too(tmp_path: Path, allowed: bool, expected: str) -> None:
    site = Site(tmp_path)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer " + site.key.encode())] if allowed else []
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers, "query_string": b"", "subprotocols": []}
    await site.gate(scope, receive, send)
    assert sent[0]["type"] == expected


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


# --- id, log, metrics ---


async def test_a_client_s_request_id_reaches_the_application_and_comes_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    answer = await site.post(headers={"x-request-id": "trace-1"})
    assert (answer.json()["id"], answer.headers.get_list("x-request-id")) == ("trace-1", ["trace-1"])
    made = await site.post()
    assert made.json()["id"] == made.headers["x-request-id"]
    assert len(made.json()["id"]) == 32


async def test_behind_serve_s_proxy_the_id_is_not_sent_twice(tmp_path: Path) -> None:
    answer = await Site(tmp_path, echo=False).post(headers={"x-request-id": "from-the-proxy"})
    assert "x-request-id" not in answer.headers
    assert answer.json()["id"] == "from-the-proxy"


@pytest.mark.parametrize("bad", ["a b", "é", "x" * 129, "", "a\tb"])
async def test_a_request_id_that_would_spoil_a_log_is_refused(tmp_path: Path, bad: str) -> None:
    answer = await Site(tmp_path).post(headers=[("x-request-id", bad.encode())])
    assert (answer.status_code, error(answer)["code"]) == (400, "invalid_request_id")


async def test_every_request_is_one_line_that_names_the_key_and_holds_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path)
    with caplog.at_level(logging.INFO, "serve_app.request"):
        await site.post(headers={"x-request-id": "trace-1"})
        await site.post(key="")
        await site.post("/v1/stream", content=b"not json", json=None)
    served, refused, streamed = lines(caplog)
    assert {name: served[name] for name in ("id", "key", "method", "path", "status", "model")} == {
        "id": "trace-1",
        "key": "alice",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "tiny",
    }
    assert (served["prompt_tokens"], served["completion_tokens"]) == (7, 5)
    assert 0 <= served["ttft_ms"] <= served["duration_ms"]
    assert (refused["status"], refused["refused"], "key" in refused) == (401, "missing_key", False)
    assert (streamed["status"], "model" in streamed) == (200, False)
    everything = "".join(record.getMessage() for record in caplog.records)
    assert site.key not in everything
    assert "secret question" not in everything


async def test_bodies_are_logged_only_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, log_bodies=True)
    with caplog.at_level(logging.INFO, "serve_app.request"):
        await site.post()
        await site.post("/v1/stream")
    asked, streamed = lines(caplog)
    assert "secret question" in asked["request_body"]
    assert streamed["response_body"] == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert site.key not in json.dumps([asked, streamed])


async def test_a_log_line_can_be_turned_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, log_requests=False)
    with caplog.at_level(logging.INFO, "serve_app.request"):
        await site.post()
    assert lines(caplog) == []


async def test_metrics_have_a_label_for_each_route_and_none_for_what_clients_make_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    seen: list[str] = []
    monkeypatch.setattr(RequestMetrics, "record", lambda self, exchange: seen.append(self.route(exchange.scope)))
    async with site.client() as client:
        for job in range(20):
            await client.get(f"/v1/jobs/{job}")
            await client.get(f"/made/up/{job}")
    await site.post(key="")
    assert sorted(set(seen)) == ["/v1/chat/completions", "/v1/jobs/{job_id}", "other"]


async def test_the_gate_shows_the_application_s_own_attributes_and_leaves_its_start_alone(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.gate.routes == site.app.routes
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["type"])

    await Site(tmp_path / "other", app).gate({"type": "lifespan"}, None, None)
    assert asked == ["lifespan"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.0061, "6ms"), (8.64, "8.64s"), (60, "1m0s"), (90.951, "1m30.951s")]
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_passing_a_token_on_costs_microseconds(tmp_path: Path) -> None:
    tokens = 20_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(tokens):
            await send({"type": "http.response.body", "body": b"data: token\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def nobody(message: Any) -> None: ...

    async def seconds(app: Callable[..., Any]) -> float:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        headers = [(b"authorization", b"Bearer " + site.key.encode())]
        started = time.perf_counter()
        await app({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, nobody)
        return time.perf_counter() - started

    site = Site(tmp_path, app)
    extra_s = min([await seconds(site.gate) for _ in range(5)]) - min([await seconds(app) for _ in range(5)])
    assert extra_s / tokens < 20e-6  # about 0.5 µs on an idle machine
