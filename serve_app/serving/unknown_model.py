"""Answers for unknown models in OpenAI's words.

vLLM 0.32 says "The model `x` does not exist. Valid aliases: …" with the code 404, or the same with no param, and
removes path-like parts of the name. With this a replica, several models and a batch's line answer alike. Anthropic's
routes keep their own shape.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.openai.errors import model_not_found
from serve_app.serving.requests.wanted import read_request

START, END = "The model `", "` does not exist"


class UnknownModel:
    """ASGI middleware. Passes all but 404 unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        request: list[bytes] = []
        held: list[Message] = []

        async def keep() -> Message:
            message = await receive()
            request.append(message.get("body", b""))
            return message

        async def look(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] != 404:
                request.clear()
            elif message["type"] == "http.response.start" or held:
                held.append(message)
                if message.get("more_body", message["type"] == "http.response.start"):
                    return
                for one in await _answer(scope, b"".join(request), held):
                    await send(one)
                return held.clear()
            await send(message)

        return await self._app(scope, keep, look)


async def _answer(scope: Scope, request: bytes, messages: list[Message]) -> list[Message]:
    """The 404's messages, or ours with their other headers."""
    start, *parts = messages
    try:
        said = _decode(b"".join(part.get("body", b"") for part in parts)).error.message
    except (msgspec.MsgspecError, RecursionError):
        return messages
    model = (await read_request(scope, request)).model
    if not (said.startswith(START) and END in said and isinstance(model, str)):
        return messages
    body = model_not_found(model).body
    start = {**start, "headers": list(start["headers"])}
    MutableHeaders(scope=start)["content-length"] = str(len(body))
    return [start, {"type": "http.response.body", "body": body}]


class _Error(msgspec.Struct):
    message: str
    code: Any


class _Body(msgspec.Struct):
    error: _Error


_decode = msgspec.json.Decoder(_Body).decode
