"""Several models on one base URL: each request goes to a replica of its `model` (see `directory.py`).

Bytes pass unchanged. Knows the engines' HTTP applications only.

    client ─ HTTP ─> Models ┬ handle ─> Replica of one application ─> its own OpenAI routes
                            └ handle ─> Replica of another

Each engine has its own route prefix, a base URL without this hop. With one model it is not used. `model` may be the
last field, so bodies are read whole; answers stream. For a slow client `forward` stops the application after
MAX_UNSENT_MESSAGES, but Serve's proxy buffers up to one whole answer. Behind HAProxy handles know no sessions: the
replica that gets a request has the session's answer it (`requests/sessions.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import msgspec
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, request_response
from starlette.types import Message, Receive, Scope, Send

from serve_app.errors import EngineFailed, ServerUnavailable
from serve_app.openai.errors import ErrorAnswer, unavailable
from serve_app.serving.gate.middleware import Gate, announced_bytes
from serve_app.serving.gate.refusal import Refusal, body_too_large
from serve_app.serving.gate.room import Place, Room
from serve_app.serving.models.directory import (
    LIST_TIMEOUT_S,
    Card,
    Directory,
    Served,
    read_session,
)
from serve_app.serving.requests.asgi import SCOPE, Answer, HttpRequest, is_last
from serve_app.serving.requests.disconnect import until_disconnect
from serve_app.serving.requests.wanted import read_request
from serve_app.settings import REPLICA_DEPLOYMENT, ModelsSettings

logger = logging.getLogger(__name__)

# Scope key of an unserved model's name.
UNKNOWN = "serve_app.unknown_model"
LIST_MODELS = HttpRequest(
    {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/v1/models",
        "raw_path": b"/v1/models",
        "query_string": b"",
        "root_path": "",
        "client": None,
        "headers": [],
    },
    b"",
)


def build_app(settings: ModelsSettings, served: Mapping[str, Served]) -> Starlette:
    """The routes over `served`, by application name. Lists are answered here. Raises BadSettings for unusable key
    files.
    """
    directory = Directory(settings, served)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": await directory.cards()})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        found = next((card for card in await directory.cards() if card["id"] == name), None)
        return JSONResponse(found) if found else await unknown(Request({**request.scope, UNKNOWN: name}))

    async def unknown(request: Request) -> Response:
        return directory.missing(request.scope.get(UNKNOWN, "")).response()

    lists = [Route("/v1/models", models), Route("/v1/models/{model:path}", model)]
    own = Gate(Starlette(routes=[*lists, Mount("/", app=request_response(unknown))]), settings.access, "inference")
    relay = Relay(directory, served, own, settings)
    return Starlette(routes=[*(Route(route.path, own) for route in lists), Mount("/", app=relay)])


@serve.deployment(
    name="Models",
    # Most wait for a replica, which has its own limit.
    max_ongoing_requests=4096,
    ray_actor_options={"num_cpus": 0},
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class Models:
    """The application at `/` for several models. Stateless."""

    def __init__(self, settings: ModelsSettings) -> None:
        self._settings = settings

    def __serve_build_asgi_app__(self) -> Starlette:
        names = [application.name for application in self._settings.applications]
        return build_app(self._settings, {name: HandleServed(name) for name in names})


async def read_body(request: Request, most_bytes: int | None, place: Place) -> bytes | Refusal:
    """The body, unless it is too large, by itself or beside others. Raises ClientDisconnect."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if most_bytes is not None and len(body) > most_bytes:
            return body_too_large(most_bytes)
        if (refusal := place.take(len(part))) is not None:
            return refusal
    return bytes(body)


class Relay:
    """ASGI application that lets a replica of the model's application answer.

    `own` refuses callers, and answers for unserved models, named in the scope under UNKNOWN.
    """

    def __init__(self, directory: Directory, served: Mapping[str, Served], own: Gate, settings: ModelsSettings) -> None:
        self._directory = directory
        self._served = served
        self._own = own
        self._default = settings.applications[0].name
        self._max_body_bytes = settings.access.max_body_bytes
        # Of requests that are handed on, only the bytes are bounded here: their replica knows the rest.
        handed_on = {"max_inflight_requests": None, "max_queue_s": None}
        self._room = Room(settings.access.model_copy(update=handed_on))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1003, "reason": "use the model's own route prefix"})
        if self._own.refuses(scope):  # before reading or starting a replica
            return await self._own(scope, receive, send)
        place = self._room.enter("", announced_bytes(dict(scope["headers"])))
        if isinstance(place, Refusal):
            return await place.response()(scope, receive, send)
        try:
            await self._hand_on(place, scope, receive, send)
        finally:
            place.leave()

    async def _hand_on(self, place: Place, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(Request(scope, receive), self._max_body_bytes, place)
        except ClientDisconnect:
            return None
        if isinstance(body, Refusal):
            return await body.response()(scope, receive, send)
        wanted = await read_request(scope, body)
        name: str | None = self._default
        if isinstance(wanted.model, str) and wanted.model:
            name = await self._directory.find(wanted.model)
        if name is None:
            return await self._own({**scope, UNKNOWN: wanted.model}, receive, send)
        request = HttpRequest({key: scope[key] for key in (*SCOPE, "headers") if key in scope}, body)
        await self._relay(self._served[name].forward(request, read_session(scope, wanted)), scope, receive, send)

    async def _relay(
        self, answer: AsyncGenerator[list[Message], None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = whole = False

        async def pump() -> None:
            nonlocal started, whole
            async with aclosing(answer):
                async for messages in answer:
                    for message in messages:
                        started, whole = True, is_last(message)
                        await send(message)

        try:
            async with until_disconnect(receive, pump()) as working:
                if whole:  # servers also disconnect after the whole answer
                    await asyncio.wait({working})
                if not working.done():
                    return
                if working.cancelled():  # Ray: cancelled at the replica
                    raise EngineFailed("the request was cancelled at its replica")
                working.result()
        except Exception as error:
            if started:
                raise  # the broken connection marks the answer incomplete
            await failure(error).response()(scope, receive, send)


class HandleServed:
    """See `Served`: an application's deployment `Replica`, if it exists yet."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._handle: DeploymentHandle | None = None

    async def forward(self, request: HttpRequest, session: str) -> AsyncGenerator[list[Message], None]:
        handle = await self._found()
        response = handle.options(stream=True, session_id=session).forward.remote(request, session)
        try:
            async for messages in response:
                yield messages
        except BaseException:
            response.cancel()
            raise

    async def models(self) -> list[Card]:
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                broadcast = (await self._found()).broadcast("complete", LIST_MODELS)
                answers = await broadcast.results_async(return_exceptions=True)
        except Exception as error:
            logger.info("application %s does not say what it serves: %r", self._application, error)
            return []
        good = [answer for answer in answers if isinstance(answer, Answer) and answer.status == 200]
        cards = [card for answer in good for card in msgspec.json.decode(answer.body)["data"]]
        return list({card["id"]: card for card in cards}.values())

    async def _found(self) -> DeploymentHandle:
        if self._handle is None:
            try:
                self._handle = await asyncio.to_thread(
                    serve.get_deployment_handle, REPLICA_DEPLOYMENT, self._application
                )
            except KeyError as error:
                raise ServerUnavailable(f"application '{self._application}' is not deployed") from error
        return self._handle


def failure(error: Exception) -> ErrorAnswer:
    logger.warning("a request was not answered by its replica: %r", error)
    told = next(iter(str(error).splitlines()), type(error).__name__)
    if isinstance(error, BackPressureError):
        busy = unavailable(told, error.retry_after_s or 1.0)
        return msgspec.structs.replace(busy, status=error.status_code, type="server_error")
    if isinstance(error, (DeploymentUnavailableError, RayActorError, EngineFailed, ServerUnavailable)):
        return unavailable(f"the replica that had this request cannot answer it: {told}")
    return ErrorAnswer(status=500, message=f"the replica failed at this request: {told}")
