"""Reads a body's model and the part to log."""

from __future__ import annotations

import msgspec

# Kept for the log; larger bodies are not searched.
SMALL_BODY_BYTES = 65_536


class _Body(msgspec.Struct):
    model: str = ""


_decode_body = msgspec.json.Decoder(_Body).decode


def read_model(body: bytes) -> str:
    """A small JSON body's `model`, else ""."""
    if len(body) > SMALL_BODY_BYTES or not body.startswith(b"{"):
        return ""
    try:
        return _decode_body(body).model
    except (msgspec.DecodeError, RecursionError):
        return ""
