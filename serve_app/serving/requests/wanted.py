"""What of a request's body is read before the engine does: the names of its model and of its prompts' session."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Scope


class Wanted(msgspec.Struct):
    """What of a body is read here. Values of other types are the engine's to refuse."""

    model: Any = None
    prompt_cache_key: Any = None


async def read_request(scope: Scope, body: bytes) -> Wanted:
    """The fields of a request's body, whether it is a form or JSON."""
    return await read_form(scope, body) if is_form(scope) else read_wanted(body)


def read_wanted(body: bytes) -> Wanted:
    """The fields of a JSON object; none of a body that is anything else."""
    try:
        return _decode_wanted(body)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:  # the engine's reader takes what JSON does not have: NaN, Infinity, lone surrogates
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return Wanted()
    return Wanted(fields.get("model"), fields.get("prompt_cache_key")) if isinstance(fields, dict) else Wanted()


async def read_form(scope: Scope, body: bytes) -> Wanted:
    """The same fields of a form, as an audio file comes in; none of one that cannot be read."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(scope, receive).form() as form:
            return Wanted(form.get("model"), form.get("prompt_cache_key"))
    except (HTTPException, MultiPartException):
        return Wanted()


def is_form(scope: Scope) -> bool:
    """Whether the body says that it is one."""
    return Headers(scope=scope).get("content-type", "").lower().startswith("multipart/form-data")


_decode_wanted = msgspec.json.Decoder(Wanted).decode
