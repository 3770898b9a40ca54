"""Common parts of all answers: model, length limit, ids and token counts."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from serve_app.engine.simulated.device import Served
from serve_app.engine.simulated.requests import RequestRefused, refused
from serve_app.openai.errors import model_not_found

SYSTEM_FINGERPRINT = "simulated"


def check_model(served: Served, model: str | None) -> str:
    """The answer's model name. Raises RequestRefused (404) for an unknown model."""
    if not model or model in served.names:
        return model or served.names[0]
    raise RequestRefused(model_not_found(model))


def room(served: Served, prompt_tokens: int, max_tokens: int | None, field: str = "messages") -> int:
    """Maximum tokens of an answer. Raises RequestRefused when the context is too short."""
    left = served.max_model_len - prompt_tokens
    if left < (max_tokens or 1):
        raise refused(
            f"This model's maximum context length is {served.max_model_len} tokens. However, you requested "
            f"{max_tokens or 0} output tokens and your prompt contains {prompt_tokens} input tokens. Please reduce the "
            "length of the input prompt or the number of requested output tokens.",
            field,
            code="context_length_exceeded",
        )
    return left if max_tokens is None else max_tokens


def new_id(prefix: str) -> str:
    """An id like OpenAI's, `chatcmpl-…`."""
    return f"{prefix}{uuid4().hex}"


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    details = {"cached_tokens": cached_tokens, "created_cache_tokens": None, "multimodal_tokens": None}
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": details,
        "completion_tokens_details": None,
    }


def streamed_usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """vLLM omits nulls in a stream."""
    whole = usage(prompt_tokens, completion_tokens, cached_tokens)
    details = {"cached_tokens": cached_tokens}
    return {**{name: value for name, value in whole.items() if value is not None}, "prompt_tokens_details": details}
