"""Token counts of an OpenAI response body.

Knows both shapes of `usage`: that of chat, completions and embeddings, and that of responses.
"""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct):
    """Tokens. Input includes `cached`, output includes `reasoning`."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Add the other's tokens."""
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.reasoning_tokens += other.reasoning_tokens


class _Input(msgspec.Struct):
    cached_tokens: int | None = None


class _Output(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Input | None = None
    completion_tokens_details: _Output | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Input | None = None
    output_tokens_details: _Output | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    body: _Body


def usage_of(body: bytes) -> Usage:
    """The body's counts, or zeros. Raises msgspec.MsgspecError unless it is a JSON object."""
    return _counts(_decode_body(body))


def usage_of_response(response: str | bytes) -> Usage:
    """The same for an outcome's {"status_code", "request_id", "body"}."""
    return _counts(_decode_response(response).body)


def _counts(body: _Body) -> Usage:
    usage = body.usage
    if usage is None:
        return Usage()
    given, made = (
        usage.prompt_tokens_details or usage.input_tokens_details,
        usage.completion_tokens_details or usage.output_tokens_details,
    )
    return Usage(
        input_tokens=usage.prompt_tokens or usage.input_tokens or 0,
        cached_tokens=(given and given.cached_tokens) or 0,
        output_tokens=usage.completion_tokens or usage.output_tokens or 0,
        reasoning_tokens=(made and made.reasoning_tokens) or 0,
    )


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_response = msgspec.json.Decoder(_Response).decode
