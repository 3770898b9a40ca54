"""Applications of several models behind fake handles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from ray import serve

from serve_app.errors import EngineFailed
from serve_app.serving.models import directory
from serve_app.serving.models.deployment import HandleServed, build_app
from serve_app.serving.requests.asgi import Answer, HttpRequest, call_app, forward
from serve_app.settings import ModelsSettings

SCOPE = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [], "asgi": {"version": "3.0"}}


class Engine:
    """An engine's application that serves `names`; what it was asked is in `asked`, who left in `left`."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        self.left: list[str] = []
        self.go_on = asyncio.Event()
        self.sent = 0
        self.app = FastAPI()
        self.app.get("/v1/models")(self.list_models)
        self.app.post("/v1/stream")(self.stream)
        self.app.post("/v1/wait")(self.wait)
        self.app.post("/v1/flood")(self.flood)
        self.app.post("/v1/broken")(self.broken)
        self.app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])(self.echo)

    async def list_models(self) -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "root": f"of {name}"} for name in self.names],
        }

    async def echo(self, request: Request) -> Response:
        """Everything that came, with a status and headers that nobody could guess."""
        body = await request.body()
        self.asked.append((request.url.path, body, dict(request.headers)))
        answer = Response(body, 207, {"x-from": self.names[0], "x-query": request.url.query}, "text/odd")
        answer.headers.append("set-cookie", "a=1")
        answer.headers.append("set-cookie", "b=2")
        return answer

    async def stream(self) -> StreamingResponse:
        """One token, and the second one only when told to."""

        async def tokens() -> AsyncIterator[str]:
            try:
                yield "data: one\n\n"
                await self.go_on.wait()
                yield "data: two\n\n"
            except asyncio.CancelledError:
                self.left.append("stream")
                raise

        return StreamingResponse(tokens(), media_type="text/event-stream")

    async def wait(self, request: Request) -> Response:
        """As vLLM's `with_cancellation`: works until the client leaves."""
        await request.body()
        while not await request.is_disconnected():
            await asyncio.sleep(0.001)
        self.left.append("wait")
        return Response(status_code=499)

    async def flood(self) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(1000):
                self.sent += 1
                yield b"x"

        return StreamingResponse(parts())

    async def broken(self) -> Response:
        raise RuntimeError("broken on purpose")


class FakeResponse:
    """Ray's streaming call: the replica runs by itself, and whatever it yields waits here, however much."""

    def __init__(self, replica: Any, request: bytes) -> None:
        self._arrived: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self.cancelled = False
        self.task = asyncio.create_task(self._run(replica, pickle.loads(request)))

    async def _run(self, replica: Any, request: HttpRequest) -> None:
        try:
            async with contextlib.aclosing(replica(request)) as messages:
                async for message in messages:
                    self._arrived.put_nowait(pickle.dumps(message))
            self._arrived.put_nowait(None)
        except BaseException as error:
            self._arrived.put_nowait(error)

    def cancel(self) -> None:
        self.cancelled = True
        self.task.cancel()

    def __aiter__(self) -> FakeResponse:
        return self

    async def __anext__(self) -> Any:
        arrived = await self._arrived.get()
        if arrived is None:
            raise StopAsyncIteration
        if isinstance(arrived, BaseException):
            raise arrived
        return pickle.loads(arrived)


class FakeHandle:
    """A DeploymentHandle of replicas that run `engines`. `fault` is raised instead of an answer."""

    def __init__(self, *engines: Engine) -> None:
        self.engines = list(engines)
        self.fault: Callable[[HttpRequest], Any] | None = None
        self.sessions: list[str] = []
        self.calls: list[FakeResponse] = []
        self.broadcasts = 0
        self.hold: asyncio.Event | None = None

    def options(self, *, stream: bool, session_id: str) -> FakeHandle:
        assert stream
        self.sessions.append(session_id)
        return self

    @property
    def forward(self) -> FakeHandle:
        return self

    def remote(self, request: HttpRequest, session: str) -> FakeResponse:
        assert session == self.sessions[-1]
        replica = self.fault or (lambda request: forward(self.engines[0].app, request))
        self.calls.append(FakeResponse(replica, pickle.dumps(request)))
        return self.calls[-1]

    def broadcast(self, method: str, request: HttpRequest) -> FakeHandle:
        assert method == "complete"
        self.broadcasts += 1
        self._asked = pickle.loads(pickle.dumps(request))
        return self

    async def results_async(self, *, return_exceptions: bool) -> list[Any]:
        assert return_exceptions
        if self.hold:
            await self.hold.wait()
        if not self.engines:
            raise RuntimeError("no replica")
        answers: list[Any] = [await call_app(engine.app, self._asked) for engine in self.engines]
        return [*answers, EngineFailed("one of them is lost"), Answer(500, (), b"another too")]


class Cluster:
    """Applications a and b, and what is deployed at `/`. `given` are names that the settings say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **given: list[str]) -> None:
        self.a, self.b = Engine("small", "small-adapter"), Engine("large", "org/large-adapter")
        self.handles = {"a": FakeHandle(self.a), "b": FakeHandle(self.b)}
        monkeypatch.setattr(serve, "get_deployment_handle", self._handle)
        monkeypatch.setattr(directory, "REFRESH_S", 0.0)
        self.applications = [{"name": name, "models": given.get(name, [])} for name in "ab"]
        self.configure(max_body_bytes=100_000)

    def configure(self, **access: Any) -> None:
        settings = ModelsSettings.model_validate({"applications": self.applications, "access": access})
        self.app = build_app(settings, {name: HandleServed(name) for name in "ab"})

    def _handle(self, deployment: str, application: str) -> FakeHandle:
        assert deployment == "Replica"
        return self.handles[application]  # KeyError for what is not deployed, as Serve raises it

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    async def post(self, ask: Any, path: str = "/v1/chat/completions", **kwargs: Any) -> httpx.Response:
        content = ask if isinstance(ask, bytes) else json.dumps(ask).encode()
        async with self.client() as client:
            return await client.post(path, content=content, **kwargs)

    async def get(self, path: str, **kwargs: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.get(path, **kwargs)

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of a real HTTP server, as only that one streams and sees clients leave."""
        server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="critical", lifespan="on"))
        running = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield client
        finally:
            server.should_exit = server.force_exit = True
            await running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def request(path: str, body: bytes = b"") -> HttpRequest:
    return HttpRequest({**SCOPE, "path": path}, body)
