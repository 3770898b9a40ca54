"""Tokens of the simulated engine: text pieces of at most four UTF-8 bytes. The bytes, as a number, are the id.

No vocabulary is needed, every id has a text, and ASCII characters have the ids of `dispatch.render.CharacterRenderer`.
English has three characters a token here, four in real tokenizers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from serve_app.engine.simulated.requests import Message, Tool

PIECE = re.compile(r" [^\s\0]{1,3}|[^\s\0]{1,4}|[\s\S]")
MOST_BYTES = 4


def encode(text: str) -> list[int]:
    ids = []
    for piece in PIECE.findall(text):
        data = piece.encode("utf-8", "replace")
        parts = [data] if len(data) <= MOST_BYTES else [character.encode("utf-8", "replace") for character in piece]
        ids += [int.from_bytes(part) for part in parts]
    return ids


def decode(ids: Iterable[int]) -> str:
    """Inverse of `encode`; invalid UTF-8 becomes U+FFFD."""
    return b"".join(token_bytes(i) for i in ids).decode("utf-8", "replace")


def token_bytes(token_id: int) -> bytes:
    return token_id.to_bytes(max(1, (token_id.bit_length() + 7) // 8))


def chat_tokens(messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> list[int]:
    """A chat in a stand-in for a model's template."""
    blocks = [f"<tools>{json.dumps([tool.model_dump() for tool in tools])}</tools>"] if tools else []
    for message in messages:
        calls = f"\n{json.dumps(message.tool_calls)}" if message.tool_calls else ""
        blocks.append(f"<{message.role}>\n{message.text}{calls}\n")
    return encode("".join(blocks) + "<assistant>\n")
