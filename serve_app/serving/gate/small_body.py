"""The part of a request's body that is looked at: its model, and what the log keeps."""

from __future__ import annotations

import msgspec

# Bytes kept for the log; larger bodies are not searched for a model.
SMALL_BODY_BYTES = 65_536


class _Body(msgspec.Struct):
    model: str = ""


_decode_body = msgspec.json.Decoder(_Body).decode


def read_model(body: bytes) -> str:
    """The `model` of a small JSON body; "" if it has none, or is not one."""
    if len(body) > SMALL_BODY_BYTES or not body.startswith(b"{"):
        return ""
    try:
        return _decode_body(body).model
    except (msgspec.DecodeError, RecursionError):
        return ""
