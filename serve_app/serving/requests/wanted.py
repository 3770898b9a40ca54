"""Reads a body's model and session before the engine does."""

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
    """The engine refuses values of other types."""

    model: Any = None
    prompt_cache_key: Any = None


async def read_request(scope: Scope, body: bytes) -> Wanted:
    """The fields of a form or JSON body."""
    return await read_form(scope, body) if is_form(scope) else read_wanted(body)


def read_wanted(body: bytes) -> Wanted:
    try:
        return _decode_wanted(body)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:  # the engine also takes NaN, Infinity, lone surrogates
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return Wanted()
    return Wanted(fields.get("model"), fields.get("prompt_cache_key")) if isinstance(fields, dict) else Wanted()


async def read_form(scope: Scope, body: bytes) -> Wanted:
    """A form's fields, as with an audio file; none if unreadable."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(scope, receive).form() as form:
            return Wanted(form.get("model"), form.get("prompt_cache_key"))
    except (HTTPException, MultiPartException):
        return Wanted()


def is_form(scope: Scope) -> bool:
    return Headers(scope=scope).get("content-type", "").lower().startswith("multipart/form-data")


_decode_wanted = msgspec.json.Decoder(Wanted).decode
