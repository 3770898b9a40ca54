"""A small application behind a gate, and a caller of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.middleware.cors import CORSMiddleware

from serve_app.serving.gate.accounting import counting, current
from serve_app.serving.gate.key_file import create_key
from serve_app.serving.gate.limits import Counters, Standing
from serve_app.serving.gate.middleware import Gate
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


def error(answer: httpx.Response) -> dict[str, Any]:
    fields: dict[str, Any] = answer.json()["error"]
    assert set(fields) == {"message", "type", "param", "code"}
    return fields


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "serve_app.request"]
