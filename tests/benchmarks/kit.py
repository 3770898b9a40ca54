"""Chunks of a stream, as a server sends them."""

from __future__ import annotations

import msgspec

USAGE = {"prompt_tokens": 40, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 32}}


def chunk(content: str) -> bytes:
    return b"data: " + msgspec.json.encode({"choices": [{"delta": {"content": content}}]}) + b"\n\n"


def ending() -> bytes:
    return b"data: " + msgspec.json.encode({"choices": [], "usage": USAGE}) + b"\n\ndata: [DONE]\n\n"
