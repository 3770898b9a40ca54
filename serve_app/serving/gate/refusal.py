"""Why a request is not served, in OpenAI's error shape and words, so that clients' own retry logic understands it.

Knows status codes, OpenAI's `type` and `code` strings and the headers that go with them. Does not decide anything.
`reason` is the label of the rejection's metric: a fixed word, never something that a client wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]


class Refusal(msgspec.Struct, frozen=True):
    """An HTTP answer that is an error of ours."""

    status: int
    reason: str
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Headers = ()

    @property
    def body(self) -> bytes:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def messages(self, extra: Iterable[tuple[bytes, bytes]] = ()) -> tuple[dict[str, object], dict[str, object]]:
        """The ASGI messages of the whole answer."""
        body = self.body
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *self.headers,
            *extra,
        ]
        start = {"type": "http.response.start", "status": self.status, "headers": headers}
        return start, {"type": "http.response.body", "body": body, "more_body": False}


def missing_key() -> Refusal:
    message = (
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
        "auth (i.e. Authorization: Bearer YOUR_KEY), or in an x-api-key header."
    )
    return Refusal(401, "missing_key", message, headers=((b"www-authenticate", b"Bearer"),))


def invalid_key(problem: str = "Incorrect API key provided.") -> Refusal:
    """One answer to unknown, revoked and expired keys but for its sentence; none repeats the key."""
    challenge = (b"www-authenticate", b'Bearer error="invalid_token"')
    return Refusal(401, "invalid_key", problem, code="invalid_api_key", headers=(challenge,))


def wrong_scope(name: str, scope: str) -> Refusal:
    message = f"The API key '{name}' has no scope '{scope}'; add it to the key's scopes in the key file."
    return Refusal(403, "wrong_scope", message, code="insufficient_permissions")


def bad_request_id(most: int) -> Refusal:
    message = f"x-request-id must be 1 to {most} visible ASCII characters, without spaces."
    return Refusal(400, "bad_request_id", message, code="invalid_request_id", param="x-request-id")


def body_too_large(most: int) -> Refusal:
    message = f"The request's body is larger than {most} bytes (max_body_bytes)."
    return Refusal(413, "body_too_large", message, code="request_too_large")


def prompt_too_long(tokens: int, most: int) -> Refusal:
    message = (
        f"This server takes prompts of at most {most} tokens (max_prompt_tokens). However, your prompt has {tokens} "
        "tokens. Please reduce its length."
    )
    return Refusal(400, "prompt_too_long", message, code="context_length_exceeded", param="messages")


def too_many_requests(name: str, kind: str, limit: int, wait_s: float) -> Refusal:
    """`kind` is `requests` or `tokens`, which is also OpenAI's type of the error."""
    short = {"requests": "RPM", "tokens": "TPM"}[kind]
    message = (
        f"Rate limit reached for key '{name}' on {kind} per min ({short}): Limit {limit}. "
        f"Please try again in {wait_s:.3g}s."
    )
    return Refusal(
        429, f"{kind}_per_minute", message, type=kind, code="rate_limit_exceeded", headers=(retry_after(wait_s),)
    )


def overloaded(most: int, wait_s: float) -> Refusal:
    message = f"This replica is answering {most} requests already (max_inflight_requests). Please try again shortly."
    return Refusal(429, "overloaded", message, type="server_error", code="overloaded", headers=(retry_after(wait_s),))


def timed_out(timeout_s: float) -> Refusal:
    message = f"The request was not answered within {timeout_s:g} s (request_timeout_s), and was aborted."
    return Refusal(504, "timeout", message, type="server_error", code="request_timeout")


def client_too_slow(timeout_s: float) -> Refusal:
    """Never seen by the client, as it does not read; for the log and the metrics."""
    return Refusal(499, "slow_client", f"The client read nothing for {timeout_s:g} s (write_timeout_s).")


def model_not_found(model: str) -> Refusal:
    """OpenAI's words."""
    return Refusal(404, "model_not_found", f"The model `{model}` does not exist", code="model_not_found", param="model")


def unavailable(message: str, retry_after_s: float = 5.0) -> Refusal:
    """No replica can answer it now."""
    headers = ((b"retry-after", b"%d" % max(0, round(retry_after_s))),)
    return Refusal(503, "unavailable", f"{message}; try again", type="server_error", headers=headers)


def retry_after(wait_s: float) -> tuple[bytes, bytes]:
    """The header has whole seconds; rounding down would have the client come back too early."""
    return b"retry-after", b"%d" % max(1, math.ceil(wait_s))
