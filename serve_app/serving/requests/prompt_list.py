"""Splits `/v1/completions` bodies by prompt list, and merges answers.

Knows `prompt`, `choices` and `usage`; other bytes pass unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import msgspec

from serve_app.serving.requests.asgi import SCOPE, Answer, HttpRequest

REPLICAS_HEADER = b"x-serve-app-replicas"


# vLLM's limit on lists, by variable and default, also for split ones.
MAX_PROMPTS_ENV, MAX_PROMPTS = "VLLM_MAX_COMPLETION_PROMPTS", 1024
# About the client's body, or encodings that cannot be merged.
OWN_HEADERS = (b"content-length", b"transfer-encoding", b"expect", b"accept-encoding")


def read_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """A JSON object's fields as raw bytes, else none."""
    try:
        return _decode_fields(body)
    except (msgspec.DecodeError, RecursionError):
        return {}


def read_prompts(fields: dict[str, msgspec.Raw]) -> list[msgspec.Raw]:
    """The prompts, if all texts or all token ids, and not streaming; else none."""
    if any(bytes(fields.get(name, b"null")) not in (b"null", b"false") for name in ("stream", "prompt_embeds")):
        return []
    try:
        prompts = _decode_prompts(fields.get("prompt", b"[]"))
    except msgspec.DecodeError:
        return []
    kinds = {bytes(memoryview(prompt)[:1]) for prompt in prompts}
    return prompts if kinds in ({b'"'}, {b"["}) else []


def split(scope: Any, fields: dict[str, msgspec.Raw], prompts: Sequence[msgspec.Raw], size: int) -> list[HttpRequest]:
    """Requests of `size` prompts each, in order. Later ones get their own request ids, if any."""
    starts = range(0, len(prompts), size)
    bodies = [_encode({**fields, "prompt": prompts[start : start + size]}) for start in starts]
    headers = [(name.lower(), value) for name, value in scope["headers"] if name.lower() not in OWN_HEADERS]
    request_id = dict(headers).get(b"x-request-id") or _text(fields.get("request_id")).encode("latin-1", "replace")
    plain = {name: scope[name] for name in SCOPE if name in scope}
    parts = []
    for number, body in enumerate(bodies):
        own = [*headers, (b"content-length", b"%d" % len(body))]
        if number and request_id:  # vLLM prefers the header
            own = [item for item in own if item[0] != b"x-request-id"]
            own.append((b"x-request-id", b"%b-%d" % (request_id, number)))
        parts.append(HttpRequest({**plain, "headers": own}, body))
    return parts


def merge(answers: Sequence[Answer]) -> Answer:
    """Merge parts in order: the first, with all choices and summed usage.

    Sums `prompt_tokens_details.cached_tokens` too, where vLLM 0.32 counts only a list's last prompt, here each part's
    (vllm#55120). vLLM gives `metrics` for single prompts only.
    """
    bodies = [_decode_fields(answer.body) for answer in answers]
    merged: dict[str, Any] = dict(bodies[0])
    choices: list[dict[str, Any]] = []
    for body in bodies:
        offset = len(choices)
        for choice in _decode_choices(body["choices"]):
            choices.append({**choice, "index": offset + int(bytes(choice["index"]))})
    merged["choices"] = choices
    merged["usage"] = reduce(_sum, [msgspec.json.decode(body["usage"]) for body in bodies])
    if "metrics" in merged:
        merged["metrics"] = None
    replicas = len({answer.replica_id for answer in answers})
    return Answer(200, (*answers[0].headers, (REPLICAS_HEADER, b"%d" % replicas)), _encode(merged))


def _sum(one: Any, other: Any) -> Any:
    """Two usages added; missing numbers count 0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: _sum(one.get(name), other.get(name)) for name in {**one, **other}}
    if one is None or other is None:
        return one if other is None else other
    return one + other if isinstance(one, int) and isinstance(other, int) else one


def _text(raw: msgspec.Raw | None) -> str:
    try:
        return msgspec.json.decode(raw, type=str) if raw is not None else ""
    except msgspec.DecodeError:
        return ""


_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_prompts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
