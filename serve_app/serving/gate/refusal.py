"""The gate's refusals in OpenAI's words, which clients' retry logic understands.

Knows status codes, OpenAI's `code` strings and their headers; decides nothing. `reason` labels the metric: a fixed
word, never client text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from serve_app.openai.errors import ErrorAnswer, retry_after


class Refusal(ErrorAnswer, frozen=True, kw_only=True):
    reason: str


def missing_key() -> Refusal:
    message = (
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
        "auth (i.e. Authorization: Bearer YOUR_KEY), or in an x-api-key header."
    )
    return Refusal(status=401, reason="missing_key", message=message, headers=((b"www-authenticate", b"Bearer"),))


def invalid_key(problem: str = "Incorrect API key provided.") -> Refusal:
    """Unknown, revoked and expired keys differ only in the message, which never repeats the key."""
    challenge = (b"www-authenticate", b'Bearer error="invalid_token"')
    return Refusal(status=401, reason="invalid_key", message=problem, code="invalid_api_key", headers=(challenge,))


def wrong_scope(name: str, scope: str) -> Refusal:
    message = f"The API key '{name}' has no scope '{scope}'; add it to the key's scopes in the key file."
    return Refusal(status=403, reason="wrong_scope", message=message, code="insufficient_permissions")


def unknown_host(host: str) -> Refusal:
    message = (
        f"This server has no API keys, so it answers only by names that are its own, and '{host[:100]}' may be "
        "somebody else's. Use its IP address or localhost, or have the operator name it in access.allowed_hosts, or "
        "set keys."
    )
    return Refusal(status=403, reason="unknown_host", message=message, code="host_not_allowed")


def foreign_origin(origin: str) -> Refusal:
    message = (
        f"This server has no API keys, so pages of other origins ({origin[:100]}) may not use it. The operator can "
        "name them in access.allowed_origins, or set keys."
    )
    return Refusal(status=403, reason="foreign_origin", message=message, code="origin_not_allowed")


def unsupported_body(kind: str, known: Iterable[str]) -> Refusal:
    types = " or ".join(f"'{one}'" for one in known)
    message = (
        f"Unsupported content type: '{kind[:100]}'. This API method only accepts {types} requests. Please try again "
        "with a supported content type."
    )
    return Refusal(status=415, reason="content_type", message=message, code="unsupported_content_type")


def encoded_body(coding: str) -> Refusal:
    message = f"The request's body is encoded ({coding[:100]}), and this server decodes none. Send it as it is."
    accepted = (b"accept-encoding", b"identity")
    return Refusal(
        status=415, reason="content_encoding", message=message, code="unsupported_encoding", headers=(accepted,)
    )


def bad_request_id(most: int) -> Refusal:
    message = f"x-request-id must be 1 to {most} visible ASCII characters, without spaces."
    return Refusal(
        status=400, reason="bad_request_id", message=message, code="invalid_request_id", param="x-request-id"
    )


def body_too_large(most: int) -> Refusal:
    message = f"The request's body is larger than {most} bytes (max_body_bytes)."
    return Refusal(status=413, reason="body_too_large", message=message, code="request_too_large")


def prompt_too_long(tokens: int, most: int) -> Refusal:
    message = (
        f"This server takes prompts of at most {most} tokens (max_prompt_tokens). However, your prompt has {tokens} "
        "tokens. Please reduce its length."
    )
    return Refusal(
        status=400, reason="prompt_too_long", message=message, code="context_length_exceeded", param="messages"
    )


def too_many_requests(name: str, kind: str, limit: int, wait_s: float) -> Refusal:
    """`kind`, `requests` or `tokens`, is also OpenAI's error type."""
    short = {"requests": "RPM", "tokens": "TPM"}[kind]
    message = (
        f"Rate limit reached for key '{name}' on {kind} per min ({short}): Limit {limit}. "
        f"Please try again in {wait_s:.3g}s."
    )
    return Refusal(
        status=429,
        reason=f"{kind}_per_minute",
        message=message,
        type=kind,
        code="rate_limit_exceeded",
        headers=(retry_after(wait_s),),
    )


def overloaded(most: int, wait_s: float) -> Refusal:
    return _full("overloaded", f"is answering {most} requests already (max_inflight_requests)", wait_s)


def too_many_bytes(most: int, wait_s: float) -> Refusal:
    return _full("bytes", f"holds requests of {most} bytes already (max_inflight_bytes)", wait_s)


def queue_full(most_s: float, wait_s: float) -> Refusal:
    return _full("queue", f"has more than {most_s:g} s of work waiting already (max_queue_s)", wait_s)


def _full(reason: str, problem: str, wait_s: float) -> Refusal:
    return Refusal(
        status=429,
        reason=reason,
        message=f"This replica {problem}. Please try again in {math.ceil(wait_s)} s.",
        type="server_error",
        code="overloaded",
        headers=(retry_after(wait_s),),
    )


def timed_out(timeout_s: float) -> Refusal:
    message = f"The request was not answered within {timeout_s:g} s (request_timeout_s), and was aborted."
    return Refusal(status=504, reason="timeout", message=message, code="request_timeout")


def client_too_slow(timeout_s: float) -> Refusal:
    """For log and metrics only; the client does not read."""
    return Refusal(
        status=499, reason="slow_client", message=f"The client read nothing for {timeout_s:g} s (write_timeout_s)."
    )
