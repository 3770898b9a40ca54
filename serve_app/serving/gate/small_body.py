"""What is looked at in a request's body: its model, and no more of it than the log keeps."""

from __future__ import annotations

import msgspec

# How much of a body is kept for the log; a larger one is not looked at for its model.
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
