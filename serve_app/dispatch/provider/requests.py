"""Builds provider requests with OpenAI's fields."""

from __future__ import annotations

import os
from typing import Any

import httpx
import msgspec

from serve_app.errors import BadSettings
from serve_app.schema import Sampling

# OpenAI's limit of top tokens for chats, and for text completions (and some providers' chats).
MOST_SHOWN, LEAST_SHOWN = 20, 5


def response_format(structured: dict[str, Any] | None) -> dict[str, Any] | None:
    """OpenAI's `response_format` for vLLM's structured outputs. Raises BadSettings for those it cannot express."""
    given = {name: value for name, value in (structured or {}).items() if value not in (None, False)}
    if not given:
        return None
    if given.keys() == {"json_object"}:
        return {"type": "json_object"}
    if given.keys() != {"json"}:
        raise BadSettings(
            f"an external provider cannot be asked for {', '.join(given)}, only for one json schema: "
            "write the rule as a json schema (a choice is an enum), or use labels",
            field="structured",
        )
    schema = given["json"]
    try:
        schema = msgspec.json.decode(schema) if isinstance(schema, str) else schema
    except msgspec.DecodeError as error:
        raise BadSettings(f"the json schema is not JSON: {error}", field="structured") from None
    # Strict: a provider that cannot keep to the schema must say so.
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    optional = {
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "response_format": response_format(sampling.structured),
    }
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **{name: value for name, value in optional.items() if value is not None},
    }


def score_fields(path: str, shown: int) -> dict[str, Any]:
    # Providers differ in applying temperature before or after showing probabilities.
    asked = {"logprobs": shown} if path == "completions" else {"logprobs": True, "top_logprobs": shown}
    return {"temperature": 1.0, "top_p": 1.0, **asked}


def checked_address(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise BadSettings(str(error), field="base_url") from None
    # httpx logs addresses, including any password or key.
    if not url.host or url.userinfo or url.query or url.fragment:
        raise BadSettings(
            "give scheme, host and path only (https://host/v1), and the key by api_key_env", field="base_url"
        )
    return base_url.rstrip("/")


def read_key(name: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise BadSettings(f"the driver's environment has no {name}: set it and restart the driver", field="api_key_env")
    if not (key.isascii() and key.isprintable()):  # h11 refuses and quotes such a header
        raise BadSettings(f"{name} holds characters that no key has (a line break?): set it anew", field="api_key_env")
    return key


def label_texts(labels: tuple[str, ...]) -> tuple[str, ...]:
    texts = tuple(label.removeprefix(" ") for label in labels)
    if len(texts) > MOST_SHOWN:
        raise BadSettings(
            f"{len(texts)} given, but an external provider shows only {MOST_SHOWN} tokens", field="labels"
        )
    if len(set(texts)) < len(texts) or not all(texts):
        raise BadSettings(
            f"{list(labels)} must not be empty, and differ in more than a space before them", field="labels"
        )
    return texts
