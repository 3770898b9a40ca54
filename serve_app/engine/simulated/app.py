"""The simulated engine's HTTP application: OpenAI's routes, and vLLM's for tokens.

Every answer has the header `x-serve-app-simulated: true`. `system_fingerprint` and a model's `owned_by` are
`simulated`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from serve_app.engine.protocol import ASGIApp
from serve_app.engine.simulated import chat, completions, embeddings, responses
from serve_app.engine.simulated.device import Served
from serve_app.engine.simulated.envelope import check_model
from serve_app.engine.simulated.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RequestRefused,
    ResponsesRequest,
    TokenizeRequest,
)
from serve_app.engine.simulated.tokens import chat_tokens, decode, encode
from serve_app.errors import ServeAppError
from serve_app.openai.errors import ErrorAnswer, of_exception
from serve_app.settings import SIMULATED_OWNER

HEADER = "x-serve-app-simulated"


def build_app(served: Served) -> FastAPI:
    app = FastAPI(title="simulated engine", default_response_class=Json)
    _add_models(app, served)
    _add_generation(app, served)
    _add_tokens(app, served)
    _add_errors(app)
    app.add_middleware(SaysSimulated)
    return app


class Json(JSONResponse):
    """JSON that may repeat a client's lone surrogates."""

    def render(self, content: Any) -> bytes:
        return _encoded(content)


def _encoded(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class SaysSimulated:
    """ASGI middleware that adds the header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (HEADER.encode(), b"true")]}
            await send(message)

        await self._app(scope, receive, marked)


def _add_models(app: FastAPI, served: Served) -> None:
    @app.get("/health")
    async def health() -> dict[str, bool]:
        served.device.check()
        return {"simulated": True}

    @app.get("/ping")
    async def ping() -> dict[str, bool]:
        return await health()

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": "simulated"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_card(served, name) for name in served.names]}


def _model_card(served: Served, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": SIMULATED_OWNER,
        "root": name,
        "parent": None,
        "max_model_len": served.max_model_len,
        "permission": [],
    }


def _add_generation(app: FastAPI, served: Served) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def create_chat_completion(body: ChatRequest) -> Any:
        computed = await chat.compute(served, body)
        if body.stream:
            return _stream(chat.pieces(served, computed))
        await served.device.decode(max(len(choice.found.token_ids) for choice in computed.choices) - 1)
        return chat.whole(computed)

    @app.post("/v1/completions", response_model=None)
    async def create_completion(body: CompletionRequest) -> Any:
        computed = await completions.compute(served, body)
        if body.stream:
            return _stream(completions.pieces(served, computed))
        await served.device.decode(max(len(choice.found.token_ids) for choice in computed.choices) - 1)
        return completions.whole(computed)

    @app.post("/v1/responses", response_model=None)
    async def create_response(body: ResponsesRequest) -> Any:
        asked = responses.as_chat(body)
        computed = await chat.compute(served, asked)
        if body.stream:
            return _named_events(responses.events(served, body, computed))
        await served.device.decode(computed.completion_tokens - 1)
        return responses.whole(body, computed)

    @app.post("/v1/embeddings", response_model=None)
    async def create_embedding(body: EmbeddingRequest) -> Any:
        return await embeddings.answer(served, body)


def _add_tokens(app: FastAPI, served: Served) -> None:
    @app.post("/tokenize", response_model=None)
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        check_model(served, body.model)
        ids = chat_tokens(body.messages, body.tools) if body.messages is not None else encode(body.prompt or "")
        strings = [decode([one]) for one in ids] if body.return_token_strs else None
        return {"count": len(ids), "max_model_len": served.max_model_len, "tokens": ids, "token_strs": strings}

    @app.post("/detokenize", response_model=None)
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        check_model(served, body.model)
        return {"prompt": decode(body.tokens)}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestRefused)
    async def on_refused(request: Request, error: RequestRefused) -> Response:
        return error.answer.response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _wrong_value(".".join(_written(first, error.body)), first["msg"])

    @app.exception_handler(ValidationError)
    async def on_wrong_item(request: Request, error: ValidationError) -> Response:
        first = error.errors()[0]
        return _wrong_value(".".join(map(str, first["loc"])), first["msg"])

    @app.exception_handler(ServeAppError)
    async def on_error(request: Request, error: ServeAppError) -> Response:
        return of_exception(error).response()


def _wrong_value(param: str, problem: str) -> Response:
    message = f"{param}: {problem}" if param else problem
    return ErrorAnswer(status=400, message=message, param=param or None).response()


def _written(error: Any, body: Any) -> Iterator[str]:
    """The error's place in the client's terms. pydantic's path also has union members."""
    for part in error["loc"][1:]:
        if isinstance(body, dict) and (part in body or error["type"] == "missing"):
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int):
            body = body[part]
        else:
            continue
        yield str(part)


def _stream(chunks: AsyncIterator[dict[str, Any]]) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield b"data: %b\n\n" % _encoded(chunk)
        yield b"data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def _named_events(events: AsyncIterator[dict[str, Any]]) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        async for event in events:
            yield b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encoded(event))

    return StreamingResponse(lines(), media_type="text/event-stream")
