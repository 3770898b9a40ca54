"""An external OpenAI-compatible provider as a pool of one replica (see `dispatcher.ReplicaPool`).

Knows HTTP, OpenAI's request and answer fields, retries and rate limits. Does not know rows, jobs or tokens: the
provider has its own tokenizer, so a chunk's prompts are JSON here, messages (a list) or plain text (a string).

Retries and limits are own code for two reasons. A pause that one answer asks for (Retry-After) holds all requests, and
what a request costs is known only by its answer's `usage`: aiolimiter gives nothing back and serves small requests
before large ones; tenacity's loop around these rules is longer than the loop. All waiting is by the event loop's clock.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import re
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

from serve_app.errors import BadSettings
from serve_app.schema import Chunk, ChunkResult, Completion, EngineInfo, ReplicaInfo, Sampling
from serve_app.spec import Provider

logger = logging.getLogger(__name__)

# Pauses of 1, 2, 4, … s, each up to half as long again: the default of 6 retries outlasts a limit that is counted
# by the minute.
FIRST_BACKOFF_S, MAX_BACKOFF_S, JITTER = 1.0, 60.0, 0.5
# Longest pause taken from a Retry-After: daily quotas ask for hours, and a wrong date could ask for years.
MAX_PAUSE_S = 86_400.0
# Providers count a limit a minute in seconds as well (OpenAI's guide: 60,000 a minute "may be enforced as 1,000
# requests/second"), so what was left unused is given out later for so long only.
BURST_S = 1.0
# OpenAI's rule of thumb for English text.
BYTES_PER_TOKEN = 4
# The most likely tokens that an answer shows: OpenAI's most for chats, and for plain completions (and for chats of
# some other providers).
MOST_SHOWN, LEAST_SHOWN = 20, 5
# OpenAI's and vLLM's stand-in for a log-probability that is not known or minus infinity.
NO_LOGPROB = -9999.0
# Of an error, so that a page of HTML does not fill the outcomes.
MOST_CHARACTERS = 1000
RETRIED = frozenset({408, 409, 429})
# The same for every row: wrong key, no credit, not allowed.
REFUSED = frozenset({401, 402, 403})


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
    """`content` in a chat's answer, `top_logprobs` in a plain completion's."""

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
    """The fields of OpenAI's chat and plain completions that are read here."""

    choices: list[Choice] = []
    usage: Usage | None = None


class Retry(Exception):
    """Raised when another try may succeed."""


class Rate:
    """So much a minute, as the generic cell rate algorithm (ITU-T I.371): one number, the time when all that was
    taken is paid off. In any minute at most the limit is taken, plus `BURST_S` of it or the largest single amount,
    whichever is more. What is given back counts for the minute it is given back in, and no further than to a full
    burst. Without a limit nothing waits.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._s_each = 60.0 / per_minute if per_minute else 0.0
        self._paid_at = -math.inf

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; zero or less is now."""
        return self._paid_at - now - max(0.0, BURST_S - amount * self._s_each)

    def take(self, amount: float, now: float) -> None:
        """Take it, or give back if negative."""
        self._paid_at = max(self._paid_at, now) + amount * self._s_each


class Limits:
    """Requests and tokens a minute over a pool's whole life, first come, first served."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests, self._tokens = Rate(requests_per_minute), Rate(tokens_per_minute)
        self._paused_until = -math.inf
        self._stopped = False
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def admit(self, tokens: float) -> None:
        """Wait until one request of so many tokens may go."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while (wait_s := self._wait_s(tokens, loop.time())) > 1e-6:  # a shorter one could round to none
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
            self._requests.take(1, loop.time())
            self._tokens.take(tokens, loop.time())

    def _wait_s(self, tokens: float, now: float) -> float:
        if self._stopped:
            return 0.0
        return max(self._paused_until - now, self._requests.wait_s(1, now), self._tokens.wait_s(tokens, now))

    def settle(self, estimated: float, used: float) -> None:
        """A request of `estimated` tokens took `used`."""
        self._tokens.take(used - estimated, asyncio.get_running_loop().time())
        self._changed.set()

    def pause(self, seconds: float) -> None:
        """No request may go for so long."""
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)

    def stop(self) -> None:
        """No request will go any more: let who waits find out."""
        self._stopped = True
        self._changed.set()


class ProviderPool:
    """See `dispatcher.ReplicaPool`. At most `provider.concurrency` requests are open over all chunks.

    With `labels` each row is scored from the most likely tokens that the provider shows; a label that is not among
    them has no known probability, and the row is `invalid`. `sampling`, if given, is checked at once.

    Raises BadSettings for an unset or unusable key, a base_url that holds more than an address, labels that cannot
    be told apart, and structured output that OpenAI's API cannot express.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        labels: tuple[str, ...] = (),
        sampling: Sampling | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._provider = provider
        self._url = _address(provider.base_url)
        self._key = _key(provider.api_key_env)
        self._labels = _label_texts(labels)
        if sampling is not None and not labels:
            response_format(sampling.structured)
        self._own_client = client is None
        limits = httpx.Limits(max_connections=provider.concurrency, max_keepalive_connections=provider.concurrency)
        self._client = client or httpx.AsyncClient(limits=limits)
        self._slots = asyncio.Semaphore(provider.concurrency)
        self._limits = Limits(provider.requests_per_minute, provider.tokens_per_minute)
        self._shown = MOST_SHOWN
        self._failure = ""
        self._refused = asyncio.Event()
        self._name = f"provider:{httpx.URL(self._url).netloc.decode()}"
        engine = EngineInfo(provider.model, self._name, 0, 0, prefix_caching=False, simulated=False)
        self._replica = ReplicaInfo(self._name, "", 0, (), engine)

    async def __aenter__(self) -> ProviderPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._own_client:
            await self._client.aclose()

    async def replicas(self) -> list[ReplicaInfo]:
        """The provider, until it refused all work."""
        return [] if self._failure else [self._replica]

    async def failure(self) -> str:
        """Why the provider refuses all work; empty as long as it does not."""
        return self._failure

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        """Ask the chunk's rows. Raises BadSettings when the provider refuses all work.

        What was answered before it refused is paid for, and returned; the other rows are `failed`.
        """
        if not self._failure:
            async with asyncio.TaskGroup() as tasks:
                rows = [tasks.create_task(self._row(prompt, chunk.sampling)) for prompt in chunk.prompts]
            completions = tuple(row.result() for row in rows)
            if not self._failure or any(completion.status != "failed" for completion in completions):
                return ChunkResult(chunk.chunk_id, self._replica, completions)
        raise BadSettings(self._failure)

    async def _row(self, prompt: bytes, sampling: Sampling) -> Completion:
        asked = msgspec.json.decode(prompt)
        path, what = ("completions", "prompt") if isinstance(asked, str) else ("chat/completions", "messages")
        try:
            fields = {"max_tokens": 1} if self._labels else _sampling_fields(sampling)
        except BadSettings as error:
            return Completion(status="invalid", error=str(error))
        body = {"model": self._provider.model, what: asked, **fields}
        estimated = len(prompt) / BYTES_PER_TOKEN + fields["max_tokens"]
        errors: list[str] = []
        backoff_s = FIRST_BACKOFF_S
        async with self._slots:
            while not self._failure:
                try:
                    return await self._attempt(path, body, estimated)
                except Retry as error:
                    errors.append(f"attempt {len(errors) + 1}: {error}")
                    if len(errors) > self._provider.max_retries:
                        break
                    with suppress(TimeoutError):
                        async with asyncio.timeout(backoff_s * random.uniform(1, 1 + JITTER)):
                            await self._refused.wait()
                    backoff_s = min(MAX_BACKOFF_S, 2 * backoff_s)
        return Completion(status="failed", error="; ".join(errors) or self._failure)

    async def _attempt(self, path: str, body: dict[str, Any], estimated: float) -> Completion:
        await self._limits.admit(estimated)
        if self._failure:
            return Completion(status="failed", error=self._failure)
        shown = self._shown
        if self._labels:
            body = body | _score_fields(path, shown)
        started = time.perf_counter()
        response = await self._post(path, body)
        if not response.is_success:
            self._limits.settle(estimated, 0)
            code, message = _error(response)
            reason = self._clean(f"{response.status_code} {response.reason_phrase}: {message}")
            if response.status_code in (400, 422) and "logprobs" in message and self._labels and shown > LEAST_SHOWN:
                self._shown = LEAST_SHOWN
                return await self._attempt(path, body, estimated)
            return self._no_answer(response, code, reason)
        return self._read(response, estimated, (time.perf_counter() - started) * 1000)

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        timeout_s = self._provider.timeout_s
        try:
            # httpx's timeouts are for each read: a server that sends a blank now and then would never meet one.
            async with asyncio.timeout(timeout_s):
                return await self._client.post(
                    f"{self._url}/{path}", content=msgspec.json.encode(body), headers=headers, timeout=timeout_s
                )
        except TimeoutError:
            raise Retry(f"no answer in {timeout_s:g} s (timeout_s)") from None
        except httpx.RequestError as error:
            raise Retry(self._clean(f"{type(error).__name__}: {error}")) from None

    def _no_answer(self, response: httpx.Response, code: object, reason: str) -> Completion:
        status = response.status_code
        if status in REFUSED or code == "insufficient_quota":  # a 429 of OpenAI's that no waiting ends
            key = self._provider.api_key_env
            where = f"the key in the driver's environment variable {key}" if key else "no key was sent: set api_key_env"
            self._failure = f"{self._name} refuses all work ({where}): {reason}"
            logger.error("%s", self._failure)
            self._refused.set()
            self._limits.stop()
            return Completion(status="failed", error=self._failure)
        if status in RETRIED or status >= 500:
            after_s = retry_after_s(response)
            if after_s:
                logger.warning("%s asks for a pause of %.1f s: %s", self._name, after_s, reason)
                self._limits.pause(after_s)
            raise Retry(reason)
        return Completion(status="invalid", error=reason)

    def _read(self, response: httpx.Response, estimated: float, latency_ms: float) -> Completion:
        try:
            answer = msgspec.json.decode(response.content, type=Answer)
        except msgspec.ValidationError as error:  # another try would give, and cost, the same
            return Completion(status="invalid", error=f"the provider's answer is not as OpenAI's API has it: {error}")
        except ValueError as error:
            raise Retry(f"the provider's answer is not JSON: {error}") from None
        if not answer.choices:
            raise Retry(self._clean(f"the provider's answer has no choices: {_error(response)[1]}"))
        choice, usage = answer.choices[0], answer.usage or Usage()
        if answer.usage is not None:
            self._limits.settle(estimated, usage.prompt_tokens + usage.completion_tokens)
        completion = Completion(
            finish_reason=choice.finish_reason,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=(usage.prompt_tokens_details or Details()).cached_tokens or 0,
            completion_tokens=usage.completion_tokens,
            latency_ms=latency_ms,
        )
        try:
            if self._labels:
                return msgspec.structs.replace(completion, label_logprobs=label_logprobs(self._labels, choice.logprobs))
            return msgspec.structs.replace(completion, text=_text(choice))
        except ValueError as error:
            return msgspec.structs.replace(completion, status="invalid", error=str(error))

    def _clean(self, text: str) -> str:
        """Short, and without the key or part of it: providers echo it ("Incorrect API key provided: sk-abcd***")."""
        text = re.sub(re.escape(self._key[:8]) + r"\S*", "[key]", text) if self._key else text
        return text[:MOST_CHARACTERS]


def response_format(structured: dict[str, Any] | None) -> dict[str, Any] | None:
    """OpenAI's `response_format` for vLLM's structured outputs. Raises BadSettings for those that it cannot express."""
    given = {name: value for name, value in (structured or {}).items() if value not in (None, False)}
    if not given:
        return None
    if given.keys() == {"json_object"}:
        return {"type": "json_object"}
    if given.keys() != {"json"}:
        raise BadSettings(
            f"structured: an external provider cannot be asked for {', '.join(given)}, only for one json schema: "
            "write the rule as a json schema (a choice is an enum), or use labels"
        )
    schema = given["json"]
    try:
        schema = msgspec.json.decode(schema) if isinstance(schema, str) else schema
    except msgspec.DecodeError as error:
        raise BadSettings(f"structured: the json schema is not JSON: {error}") from None
    # Strict, since that is what `structured` means: a provider that cannot keep to the schema shall say so.
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def label_logprobs(labels: tuple[str, ...], logprobs: Logprobs | None) -> tuple[float, ...]:
    """Natural log-probability of each label as the next token: the sum of the tokens shown that are the label.

    A token is a label with or without one space before it. Raises ValueError for a label that is not shown: its
    probability is not known then, only that it is small.
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
    """Seconds that the answer's Retry-After (RFC 9110, 10.2.3: seconds or a date) asks to wait; 0 without one.

    A date is measured from the answer's own Date, so that the clocks need not agree.
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


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
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


def _score_fields(path: str, shown: int) -> dict[str, Any]:
    # Temperature 1: some providers show the probabilities before it is applied and some after; so they are the same.
    asked = {"logprobs": shown} if path == "completions" else {"logprobs": True, "top_logprobs": shown}
    return {"temperature": 1.0, "top_p": 1.0, **asked}


def _text(choice: Choice) -> str:
    text = choice.message.content if choice.text is None else choice.text
    if choice.message.refusal:
        raise ValueError(f"the model refused: {choice.message.refusal}")
    if text is None:
        raise ValueError(f"the answer holds no text; it ended by '{choice.finish_reason}'")
    return text


def _error(response: httpx.Response) -> tuple[object, str]:
    """Code and message of an error answer, wherever they stand: OpenAI, vLLM and FastAPI differ."""
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


def _address(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise BadSettings(f"base_url: {error}") from None
    # httpx logs addresses, so a password or a key in one would be logged with it.
    if not url.host or url.userinfo or url.query or url.fragment:
        raise BadSettings("base_url: give scheme, host and path only (https://host/v1), and the key by api_key_env")
    return base_url.rstrip("/")


def _key(name: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise BadSettings(f"api_key_env: the driver's environment has no {name}: set it and restart the driver")
    if not (key.isascii() and key.isprintable()):  # h11 would refuse it as a header, and quote it
        raise BadSettings(f"api_key_env: {name} holds characters that no key has (a line break?): set it anew")
    return key


def _label_texts(labels: tuple[str, ...]) -> tuple[str, ...]:
    texts = tuple(label.removeprefix(" ") for label in labels)
    if len(texts) > MOST_SHOWN:
        raise BadSettings(f"labels: {len(texts)} given, but an external provider shows only {MOST_SHOWN} tokens")
    if len(set(texts)) < len(texts) or not all(texts):
        raise BadSettings(f"labels: {list(labels)} must not be empty, and differ in more than a space before them")
    return texts
