"""Makes a generated request cheap without making it tame.

Knows which fields of a body decide how much an engine computes, and bounds those alone: whatever is wrong, missing or
absurd about a body stays so. Does not know who made it or where it goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_TOKENS = 4
LIMITS = {
    "max_tokens": MAX_TOKENS,
    "max_completion_tokens": MAX_TOKENS,
    "max_output_tokens": MAX_TOKENS,
    "n": 2,
    "best_of": 2,
}
# Longer lists of work are cut; every other list may have any length.
LENGTHS = {"prompt": 4, "messages": 4, "items": 4, "rows": 3}
# Numbers from here on are refused before anything is computed (max_model_len, VLLM_MAX_N_SEQUENCES), so they may pass.
ABSURD = 10_000_000
# Without this field the routes generate until the context is full.
DEFAULT_FIELDS = {
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_tokens",
    "/v1/chat/completions/batch": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/populations/": "max_tokens",
}
# Nothing listens there: a job that names an external provider must not leave this machine.
NOBODY = "http://127.0.0.1:9/v1"


def clamp(path: str, body: Any) -> Any:
    """The body, or a copy of it that costs at most a few tokens, for a request to `path`."""
    if not isinstance(body, Mapping):
        return body
    bounded = {
        name: clamp_number(value, LIMITS[name]) if name in LIMITS else cut(value, LENGTHS.get(name))
        for name, value in body.items()
    }
    if (field := DEFAULT_FIELDS.get(path)) and bounded.get(field) is None:
        bounded[field] = MAX_TOKENS
    if path == "/v1/populations/":
        bounded = _tiny_population(bounded)
    return bounded


def clamp_number(value: Any, limit: int) -> Any:
    """`value`, or `limit` in its type, if it reads as a number between `limit` and ABSURD."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return value
    return type(value)(limit) if math.isfinite(number) and limit < number < ABSURD else value


def cut(value: Any, length: int | None) -> Any:
    """`value`, or its first `length` elements if it is a list."""
    return value[:length] if isinstance(value, list) else value


def _tiny_population(body: dict[str, Any]) -> dict[str, Any]:
    """No other host is reached, and no job waits for minutes on a rate limit or a retry."""
    if isinstance(source := body.get("source"), str) and "://" in source:
        body["source"] = "no-such-file.jsonl"
    if isinstance(provider := body.get("provider"), dict):
        body["provider"] = {**provider, **({"base_url": NOBODY} if "base_url" in provider else {}), "max_retries": 0}
        for rate in ("requests_per_minute", "tokens_per_minute"):
            body["provider"].pop(rate, None)
    return body
