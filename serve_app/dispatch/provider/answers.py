"""Reads a provider's answers."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime

import httpx
import msgspec

# Limit on Retry-After: daily quotas ask for hours, a wrong date for years.
MAX_PAUSE_S = 86_400.0
# Unknown or infinite log-probability at OpenAI and in vLLM.
NO_LOGPROB = -9999.0


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None


class Token(msgspec.Struct):
    token: str
    logprob: float


class Position(msgspec.Struct):
    top_logprobs: list[Token] = []


class Logprobs(msgspec.Struct):
    """`content` in chat answers, `top_logprobs` in text completions."""

    content: list[Position] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class Choice(msgspec.Struct):
    message: Message = msgspec.field(default_factory=Message)
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Answer(msgspec.Struct):
    """The fields read from OpenAI's chat and text completions."""

    choices: list[Choice] = []
    usage: Usage | None = None


def label_logprobs(labels: tuple[str, ...], logprobs: Logprobs | None) -> tuple[float, ...]:
    """Natural log-probability of each label as the next token, summed over shown tokens equal to the label with or
    without one space before it.

    Raises ValueError for a label that is not shown.
    """
    shown: list[tuple[str, float]] = []
    if logprobs is not None and logprobs.content:
        shown = [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs]
    elif logprobs is not None and logprobs.top_logprobs:
        shown = list((logprobs.top_logprobs[0] or {}).items())
    if not shown:
        raise ValueError("the provider's answer shows no log-probabilities: score with a provider and model that do")
    found: dict[str, list[float]] = {label: [] for label in labels}
    for token, logprob in shown:
        if (label := token.removeprefix(" ")) in found and logprob > NO_LOGPROB:
            found[label].append(logprob)
    if missing := [label for label, values in found.items() if not values]:
        raise ValueError(
            f"labels: {', '.join(map(repr, missing))} not among the {len(shown)} most likely tokens, which are all "
            f"that the provider shows: {', '.join(repr(token) for token, _ in shown)}"
        )
    return tuple(_log_sum_exp(found[label]) for label in labels)


def retry_after_s(response: httpx.Response) -> float:
    """Seconds to wait by Retry-After (RFC 9110, 10.2.3: seconds or a date); 0 without one. Dates are compared with the
    answer's own Date, so clocks may differ.
    """
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value).timestamp()
            date = response.headers.get("date")
            seconds = until - (parsedate_to_datetime(date).timestamp() if date else time.time())
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), MAX_PAUSE_S) if math.isfinite(seconds) else 0.0


def read_text(choice: Choice) -> str:
    text = choice.message.content if choice.text is None else choice.text
    if choice.message.refusal:
        raise ValueError(f"the model refused: {choice.message.refusal}")
    if text is None:
        raise ValueError(f"the answer holds no text; it ended by '{choice.finish_reason}'")
    return text


def read_error(response: httpx.Response) -> tuple[object, str]:
    """Code and message of an error in OpenAI's, vLLM's or FastAPI's shape."""
    try:
        data = response.json()
    except ValueError:
        return None, " ".join(response.text.split())
    error = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(error, dict):
        return None, str(error)
    return error.get("code"), str(error.get("message") or error.get("detail") or error)


def _log_sum_exp(values: list[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))
