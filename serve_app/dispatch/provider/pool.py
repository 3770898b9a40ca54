"""An external OpenAI-compatible provider as a pool of one replica (see `pool.ReplicaPool`).

Knows HTTP, OpenAI's fields, retries and rate limits, not rows, jobs or tokens. Prompts are JSON messages (a list) or
text (a string).

Retries and limits are our code: one answer's Retry-After holds all requests, a refusal ends every pause (stamina's do
not end), and only `usage` tells the cost (aiolimiter returns nothing and serves small requests first). The event loop's
clock times all waits.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import httpx
import msgspec

from serve_app.addresses import PUBLIC, Reach
from serve_app.dispatch.provider.answers import (
    Answer,
    Details,
    Usage,
    label_logprobs,
    read_error,
    read_text,
    retry_after_s,
)
from serve_app.dispatch.provider.connect import make_client, post
from serve_app.dispatch.provider.limits import Limits
from serve_app.dispatch.provider.requests import (
    LEAST_SHOWN,
    MOST_SHOWN,
    checked_address,
    label_texts,
    read_key,
    response_format,
    sampling_fields,
    score_fields,
)
from serve_app.errors import BadSettings
from serve_app.schema import Chunk, Completion, EngineInfo, Finished, ReplicaInfo, Sampling
from serve_app.spec import Provider

logger = logging.getLogger(__name__)
# 1, 2, 4, … s plus up to half: 6 retries outlast a per-minute limit.
FIRST_BACKOFF_S, MAX_BACKOFF_S, JITTER = 1.0, 60.0, 0.5
# OpenAI's estimate for English text.
BYTES_PER_TOKEN = 4
# Keeps HTML error pages out of outcomes.
MOST_CHARACTERS = 1000
RETRIED = frozenset({408, 409, 429})
# Wrong key, no credit or forbidden: the same for every row.
REFUSED = frozenset({401, 402, 403})


class Retry(Exception):
    """Raised when a retry may succeed."""


class ProviderPool:
    """See `pool.ReplicaPool`. At most `provider.concurrency` requests are open over all chunks. A row whose label is
    not shown is `invalid`.

    Raises BadSettings for an unusable key, a base_url that is more than an address, labels that cannot be told apart,
    and structured output that OpenAI's API cannot express.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        labels: tuple[str, ...] = (),
        sampling: Sampling | None = None,
        reach: Reach = PUBLIC,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._provider = provider
        self._url = checked_address(provider.base_url)
        self._key = read_key(provider.api_key_env)
        self._labels = label_texts(labels)
        if sampling is not None and not labels:
            response_format(sampling.structured)
        self._own_client = client is None
        limits = httpx.Limits(max_connections=provider.concurrency, max_keepalive_connections=provider.concurrency)
        self._client = client or make_client(self._url, reach, limits)
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
        """The provider, until it refuses all work."""
        return [] if self._failure else [self._replica]

    async def failure(self) -> str:
        return self._failure

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        """Ask the chunk's rows. Raises BadSettings if the provider refuses all work, after the answers before that."""
        if not self._failure:
            asked = [asyncio.create_task(self._row(prompt, chunk.sampling)) for prompt in chunk.prompts]
            waiting = dict(zip(asked, range(len(asked)), strict=True))
            try:
                while waiting:
                    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    rows = {waiting.pop(task): task.result() for task in done}
                    if rows := {i: row for i, row in rows.items() if row.status != "failed" or not self._failure}:
                        yield Finished(self._replica, rows)
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
        if self._failure:
            raise BadSettings(self._failure)

    async def _row(self, prompt: bytes, sampling: Sampling) -> Completion:
        asked = msgspec.json.decode(prompt)
        path, what = ("completions", "prompt") if isinstance(asked, str) else ("chat/completions", "messages")
        try:
            fields = {"max_tokens": 1} if self._labels else sampling_fields(sampling)
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
            body = body | score_fields(path, shown)
        started = time.perf_counter()
        try:
            response = await self._post(path, body)
        except BadSettings as error:
            return self._refuse(str(error))
        if not response.is_success:
            self._limits.settle(estimated, 0)
            code, message = read_error(response)
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
            # httpx's timeouts are per read; a server that sends blanks never meets one.
            async with asyncio.timeout(timeout_s):
                return await post(
                    self._client,
                    f"{self._url}/{path}",
                    content=msgspec.json.encode(body),
                    headers=headers,
                    timeout=timeout_s,
                )
        except TimeoutError:
            raise Retry(f"no answer in {timeout_s:g} s (timeout_s)") from None
        except httpx.RequestError as error:
            raise Retry(self._clean(f"{type(error).__name__}: {error}")) from None

    def _no_answer(self, response: httpx.Response, code: object, reason: str) -> Completion:
        status = response.status_code
        if status in REFUSED or code == "insufficient_quota":  # a 429 that waiting does not end
            key = self._provider.api_key_env
            where = f"the key in the driver's environment variable {key}" if key else "no key was sent: set api_key_env"
            return self._refuse(f"{self._name} refuses all work ({where}): {reason}")
        if status in RETRIED or status >= 500:
            after_s = retry_after_s(response)
            if after_s:
                logger.warning("%s asks for a pause of %.1f s: %s", self._name, after_s, reason)
                self._limits.pause(after_s)
            raise Retry(reason)
        return Completion(status="invalid", error=reason)

    def _refuse(self, failure: str) -> Completion:
        self._failure = failure
        logger.error("%s", failure)
        self._refused.set()
        self._limits.stop()
        return Completion(status="failed", error=failure)

    def _read(self, response: httpx.Response, estimated: float, latency_ms: float) -> Completion:
        try:
            answer = msgspec.json.decode(response.content, type=Answer)
        except msgspec.ValidationError as error:  # a retry would cost and fail the same
            return Completion(status="invalid", error=f"the provider's answer is not as OpenAI's API has it: {error}")
        except ValueError as error:
            raise Retry(f"the provider's answer is not JSON: {error}") from None
        if not answer.choices:
            raise Retry(self._clean(f"the provider's answer has no choices: {read_error(response)[1]}"))
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
            return msgspec.structs.replace(completion, text=read_text(choice))
        except ValueError as error:
            return msgspec.structs.replace(completion, status="invalid", error=str(error))

    def _clean(self, text: str) -> str:
        """Shorten, and remove the key, which providers echo ("Incorrect API key provided: sk-abcd***")."""
        text = re.sub(re.escape(self._key[:8]) + r"\S*", "[key]", text) if self._key else text
        return text[:MOST_CHARACTERS]
