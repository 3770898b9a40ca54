"""Several models behind one URL: fake handles, real applications behind them, and a real HTTP server in front."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, NotFoundError
from pydantic import ValidationError
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from serve_app.errors import EngineFailed
from serve_app.serving.gate.key_file import create_key
from serve_app.serving.models import deployment as models
from serve_app.serving.models import directory
from serve_app.serving.models.deployment import HandleServed, build_app
from serve_app.serving.models.directory import read_wanted
from serve_app.serving.requests import piece as pieces
from serve_app.serving.requests.piece import Answer, Piece, answer_piece, forward, joined
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

    def __init__(self, replica: Any, piece: bytes) -> None:
        self._arrived: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self.cancelled = False
        self.task = asyncio.create_task(self._run(replica, pickle.loads(piece)))

    async def _run(self, replica: Any, piece: Piece) -> None:
        try:
            async with contextlib.aclosing(replica(piece)) as messages:
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
        self.fault: Callable[[Piece], Any] | None = None
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

    def remote(self, piece: Piece) -> FakeResponse:
        replica = self.fault or (lambda piece: forward(self.engines[0].app, piece))
        self.calls.append(FakeResponse(replica, pickle.dumps(piece)))
        return self.calls[-1]

    def broadcast(self, method: str, piece: Piece) -> FakeHandle:
        assert method == "complete"
        self.broadcasts += 1
        self._asked = pickle.loads(pickle.dumps(piece))
        return self

    async def results_async(self, *, return_exceptions: bool) -> list[Any]:
        assert return_exceptions
        if self.hold:
            await self.hold.wait()
        if not self.engines:
            raise RuntimeError("no replica")
        answers: list[Any] = [await answer_piece(engine.app, self._asked) for engine in self.engines]
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


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# --- which application ---


@pytest.mark.parametrize(
    ("model", "application"),
    [
        ("small", "a"),
        ("small-adapter", "a"),
        ("large", "b"),
        ("org/large-adapter", "b"),
        (None, "a"),
        ("", "a"),
        (7, "a"),
    ],
)
async def test_a_request_goes_to_the_application_that_serves_its_model_and_else_to_the_first(
    cluster: Cluster, model: Any, application: str
) -> None:
    await cluster.post({"messages": [{"content": "hello"}], "model": model})
    asked = {name: len(engine.asked) for name, engine in (("a", cluster.a), ("b", cluster.b))}
    assert asked == {"a": 0, "b": 0} | {application: 1}


@pytest.mark.parametrize(("model", "application"), [("large", "b"), ("small", "a"), (None, "a")])
async def test_a_form_goes_to_the_application_that_serves_its_model_too(
    cluster: Cluster, model: str | None, application: str
) -> None:
    form = {"language": "en"} | ({"model": model} if model else {})
    request = httpx.Request("POST", "http://test/", data=form, files={"file": ("a.wav", b"\0\xff" * 5000)})
    answer = await cluster.post(request.read(), headers={"content-type": request.headers["content-type"]})
    engine = {"a": cluster.a, "b": cluster.b}[application]
    assert answer.headers["x-from"] == engine.names[0]
    assert engine.asked[-1][1] == request.content


async def test_a_broken_form_is_the_first_applications_to_refuse(cluster: Cluster) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = await cluster.post(b"--y nothing", headers={"content-type": kind})
        assert answer.headers["x-from"] == "small"


@pytest.mark.parametrize("body", [b"", b"not JSON", b'["large"]', b'{"model": "large"', b"[" * 100_000, b'"large"'])
async def test_a_body_that_names_no_model_is_the_first_applications_to_refuse(cluster: Cluster, body: bytes) -> None:
    assert (await cluster.post(body)).headers["x-from"] == "small"
    assert cluster.a.asked[0][1] == body


async def test_requests_without_body_go_to_the_first_application(cluster: Cluster) -> None:
    assert (await cluster.get("/health?full=1")).headers["x-query"] == "full=1"
    assert [path for path, _, _ in cluster.a.asked] == ["/health"]


async def test_an_unknown_model_is_refused_in_openais_words(cluster: Cluster) -> None:
    answer = await cluster.post({"model": "nobody's"})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model `nobody's` does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert cluster.a.asked == cluster.b.asked == []
    openai = AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=cluster.client(), max_retries=0)
    with pytest.raises(NotFoundError) as raised:
        await openai.models.retrieve("nobody's")
    assert raised.value.code == "model_not_found"
    assert (await openai.models.retrieve("org/large-adapter")).id == "org/large-adapter"


async def test_a_model_whose_name_is_no_text_is_not_found_either(cluster: Cluster) -> None:
    answer = await cluster.post(b'{"model": "\\udcff"}')
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_an_unknown_model_is_a_503_as_long_as_an_application_has_not_said_what_it_serves(
    cluster: Cluster,
) -> None:
    cluster.handles["b"].engines.clear()
    answer = await cluster.post({"model": "large"})
    assert answer.status_code == 503
    assert "no replica of b has said" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0
    cluster.handles["b"].engines.append(cluster.b)
    assert (await cluster.post({"model": "large"})).headers["x-from"] == "large"


async def test_names_in_the_settings_are_known_while_no_replica_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, b=["large"])
    cluster.handles["b"].engines.clear()
    cluster.handles["b"].fault = lambda piece: forward(cluster.b.app, piece)  # Serve starts one for the call
    assert (await cluster.post({"model": "large"})).headers["x-from"] == "large"
    assert [card["id"] for card in (await cluster.get("/v1/models")).json()["data"]] == [
        "small",
        "small-adapter",
        "large",
    ]
    assert (await cluster.post({"model": "nobody's"})).status_code == 404


async def test_an_application_that_is_not_deployed_yet_is_found_once_it_is(cluster: Cluster) -> None:
    late = cluster.handles.pop("a")
    assert (await cluster.post({"model": "large"})).status_code == 207
    answer = await cluster.post({})
    assert answer.status_code == 503
    assert "application 'a' is not deployed" in answer.json()["error"]["message"]
    cluster.handles["a"] = late
    assert (await cluster.post({})).headers["x-from"] == "small"


async def test_what_an_application_once_said_is_known_when_its_replicas_are_gone(cluster: Cluster) -> None:
    before = (await cluster.get("/v1/models")).json()
    cluster.handles["b"].engines.clear()
    assert (await cluster.get("/v1/models")).json() == before


async def test_an_adapter_that_one_replica_loaded_later_is_found(cluster: Cluster) -> None:
    await cluster.get("/v1/models")
    cluster.handles["b"].engines.append(Engine("large", "fresh"))
    assert (await cluster.post({"model": "fresh"})).headers["x-from"] == "large"


async def test_the_list_is_that_of_all_applications_each_model_once(cluster: Cluster) -> None:
    cluster.handles["a"].engines.append(Engine("small", "large"))
    listed = (await cluster.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["small", "small-adapter", "large", "org/large-adapter"]
    assert listed["data"][0]["root"] == "of small"
    assert (await cluster.get("/v1/models/small-adapter")).json() == listed["data"][1]


async def test_known_models_ask_nobody_and_many_unknown_ones_ask_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "REFRESH_S", 60.0)
    await asyncio.gather(*(cluster.post({"model": f"unknown {i}"}) for i in range(20)))
    await asyncio.gather(*(cluster.post({"model": "large"}) for i in range(20)))
    assert {handle.broadcasts for handle in cluster.handles.values()} == {1}


async def test_replicas_that_hang_delay_a_list_by_so_much_and_no_known_model_at_all(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.get("/v1/models")
    monkeypatch.setattr(models, "LIST_TIMEOUT_S", 0.01)
    cluster.handles["b"].hold = asyncio.Event()
    async with asyncio.timeout(5):
        assert len((await cluster.get("/v1/models")).json()["data"]) == 4
    monkeypatch.setattr(models, "LIST_TIMEOUT_S", 60.0)
    async with asyncio.timeout(5):
        assert (await cluster.post({"model": "large"})).status_code == 207


async def test_who_asks_first_and_leaves_takes_the_list_from_nobody(cluster: Cluster) -> None:
    hold = cluster.handles["a"].hold = asyncio.Event()
    first = asyncio.create_task(cluster.get("/v1/models"))
    await until(lambda: cluster.handles["a"].broadcasts == 1)
    second = asyncio.create_task(cluster.get("/v1/models"))
    await asyncio.sleep(0.01)
    first.cancel()
    hold.set()
    assert len((await second).json()["data"]) == 4


async def test_what_is_answered_here_needs_a_key_where_keys_are_set_and_the_rest_is_the_replicas_to_refuse(
    cluster: Cluster, tmp_path: Path
) -> None:
    key = {"Authorization": f"Bearer {create_key(tmp_path / 'keys.json', 'me')}"}
    cluster.configure(key_files=[str(tmp_path / "keys.json")])
    for path in ("/v1/models", "/v1/models/small"):
        assert (await cluster.get(path)).status_code == 401
        assert (await cluster.get(path, headers=key)).status_code == 200
    assert (await cluster.post({"model": "nobody's"})).status_code == 401
    assert (await cluster.post({"model": "nobody's"}, headers=key)).status_code == 404
    assert (await cluster.post({"model": "large"})).status_code == 207


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
    async def fail(piece: Piece) -> AsyncIterator[Any]:
        raise error
        yield

    cluster.handles["b"].fault = fail
    answer = await cluster.post({"model": "large"})
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert "\n" not in told["message"]


async def test_an_answer_that_ends_half_way_breaks_the_connection(cluster: Cluster) -> None:
    async def half(piece: Piece) -> AsyncIterator[Any]:
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


# --- at the replica ---


def piece(path: str, body: bytes = b"") -> Piece:
    return Piece({**SCOPE, "path": path}, body)


async def test_parts_of_an_answer_that_wait_together_travel_together(cluster: Cluster) -> None:
    taken = 0
    async for messages in forward(cluster.a.app, piece("/v1/flood")):
        taken += 1
        body = messages[-1]
        await asyncio.sleep(0.001)
    assert taken < 100
    assert body == {"type": "http.response.body", "body": body["body"], "more_body": False}
    assert cluster.a.sent == 1000


async def test_an_application_is_held_back_while_nobody_takes_its_answer(cluster: Cluster) -> None:
    answer = forward(cluster.a.app, piece("/v1/flood"))
    await anext(answer)
    for _ in range(2000):
        await asyncio.sleep(0)
    assert cluster.a.sent <= 2 * pieces.MAX_UNSENT_MESSAGES
    received = sum(len(message.get("body", b"")) for messages in [m async for m in answer] for message in messages)
    assert received <= 1000
    assert cluster.a.sent == 1000


async def test_an_application_that_waits_for_room_is_freed_when_its_answer_is_no_longer_wanted(
    cluster: Cluster,
) -> None:
    answer = forward(cluster.a.app, piece("/v1/flood"))
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
            _ = [messages async for messages in forward(app, piece("/"))]


async def test_what_an_application_raises_after_its_answer_does_not_undo_the_answer(cluster: Cluster) -> None:
    messages = [message async for messages in forward(cluster.a.app, piece("/v1/broken")) for message in messages]
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

    answer = forward(endless, piece("/"))
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

    monkeypatch.setattr(pieces, "ABORT_S", 0.01)
    answer = forward(deaf, piece("/"))
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


# --- settings ---


@pytest.mark.parametrize(
    ("applications", "told"),
    [
        ([], "at least 1 item"),
        ([{"name": "a"}, {"name": "a"}], "applications.name: a is there twice"),
        ([{"name": "a", "models": ["m"]}, {"name": "b", "models": ["m"]}], "applications.models: m is there twice"),
        ([{"name": "a", "model": "m"}], "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_field(applications: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ModelsSettings.model_validate({"applications": applications})


def test_the_example_names_applications_that_are_there_and_models_that_they_serve() -> None:
    document = yaml.safe_load((Path(__file__).parents[3] / "config.two-models.yaml").read_text())
    applications = {application["name"]: application for application in document["applications"]}
    assert applications["models"]["route_prefix"] == "/"
    for application in ModelsSettings.model_validate(applications["models"]["args"]).applications:
        named = applications[application.name]
        assert named["import_path"] == "serve_app.serving.apps:replicas"
        assert application.models == (named["args"]["engine"]["served_model_name"],)


def test_only_two_fields_of_a_body_are_read() -> None:
    wanted = read_wanted(b'{"messages": [{"model": "inner"}], "model": "outer", "prompt_cache_key": "k"}')
    assert (wanted.model, wanted.prompt_cache_key) == ("outer", "k")
