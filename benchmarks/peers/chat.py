"""Chat completions as the HTTP peers and `vllm run-batch` ask for them and read them. Knows bodies, not transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def scored_body(model: str, messages: Sequence[dict[str, str]], label_ids: Sequence[int]) -> dict[str, Any]:
    """One generated token with the exact log-probability of each label (vLLM's `logprob_token_ids`)."""
    return {
        "model": model,
        "messages": list(messages),
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": True,
        "logprob_token_ids": list(label_ids),
        "return_tokens_as_token_ids": True,  # labels are found by id: their text may be ambiguous
    }


def label_logprobs(body: dict[str, Any] | None, label_ids: Sequence[int]) -> list[float] | None:
    """The labels' log-probabilities in a response; None where there is no response or one without them."""
    try:
        found = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]  # type: ignore[index]  # None is caught
    except (LookupError, TypeError):
        return None
    by_token = {one["token"]: one["logprob"] for one in found}
    return [by_token[f"token_id:{label}"] for label in label_ids]


def usage(bodies: Sequence[dict[str, Any] | None]) -> tuple[int, int | None]:
    """(prompt tokens, of which cached); cached is None where the server does not tell."""
    usages = [body["usage"] for body in bodies if body]
    details = [one["prompt_tokens_details"] for one in usages if one.get("prompt_tokens_details")]
    cached = sum(one["cached_tokens"] or 0 for one in details) if details else None
    return sum(one["prompt_tokens"] for one in usages), cached
