"""Verifies a running server step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx

from serve_app import extras
from serve_app.settings import SIMULATED_OWNER, api_key, api_key_headers

# Fills several blocks of the prefix cache.
REPEATED = "serve-app check " + "counts one, two, three, four, five, six, seven, eight, nine, ten; " * 12
# Each try may reach a replica with an empty cache.
CACHE_TRIES = 8


class _Problem(Exception):
    """Raised when a step fails."""


def run_checks(base_url: str, replicas: int = 1) -> Iterator[tuple[str, str | None, str]]:
    """Yield (step, problem or None, what was seen). A failed step may end the checks.

    Raises BadSettings without the extra `openai`.
    """
    extras.require(extras.OPENAI)
    checks = _Checks(base_url.rstrip("/").removesuffix("/v1"), replicas)
    for name, step, needed in checks.steps():
        try:
            seen = step()
        except _Problem as problem:
            yield name, str(problem), ""
        except Exception as error:
            yield name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300], ""
        else:
            yield name, None, seen
            continue
        if needed:
            return


class _Checks:
    def __init__(self, base_url: str, replicas: int) -> None:
        from openai import OpenAI

        self._base_url = base_url
        self._replicas = replicas
        self._client: Any = OpenAI(base_url=f"{base_url}/v1", api_key=api_key() or "none", max_retries=0, timeout=120)
        self._model = ""

    def steps(self) -> list[tuple[str, Callable[[], str], bool]]:
        """(name, step, whether later steps need it)."""
        return [
            ("reachable", self.reachable, True),
            ("model listed", self.model_listed, True),
            ("completion", self.completion, False),
            ("chat template", self.chat, False),
            ("streaming", self.streaming, False),
            ("logprobs", self.logprobs, False),
            ("prefix cache", self.prefix_cache, False),
            ("replicas", self.replica_count, False),
        ]

    def reachable(self) -> str:
        try:
            response = httpx.get(f"{self._base_url}/health", timeout=10)
        except httpx.HTTPError as error:
            raise _Problem(f"{self._base_url} does not answer ({error}): is the server running there?") from error
        if response.status_code != 200:
            raise _Problem(f"GET /health answered {response.status_code}: {self._why_not()}")
        return self._base_url

    def _why_not(self) -> str:
        """The driver's reason for missing replicas."""
        try:
            answer = httpx.get(
                f"{self._base_url}/v1/populations/replicas", timeout=30, headers=api_key_headers()
            ).json()
            return answer["failure"] or "the replicas are starting"
        except (httpx.HTTPError, ValueError, KeyError):
            return "the driver does not answer either"

    def model_listed(self) -> str:
        models = self._client.models.list().data
        if not models:
            raise _Problem("GET /v1/models lists no model")
        self._model = models[0].id
        marks = {model.id: " (SIMULATED)" if model.owned_by == SIMULATED_OWNER else "" for model in models}
        return ", ".join(f"{name}{mark}" for name, mark in marks.items())

    def completion(self) -> str:
        answer = self._client.completions.create(model=self._model, prompt="The sky is", max_tokens=5)
        if not answer.usage.completion_tokens:
            raise _Problem("the completion has no tokens")
        return repr(answer.choices[0].text)

    def chat(self) -> str:
        answer = self._client.chat.completions.create(
            model=self._model, messages=[{"role": "user", "content": "Say hello."}], max_tokens=10
        )
        text = answer.choices[0].message.content or ""
        if not text.strip() or "<|" in text:
            raise _Problem(f"the chat answer {text!r} is empty or shows template tokens: check the chat template")
        return repr(text)

    def streaming(self) -> str:
        stream = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": "Count to five."}],
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        if len(chunks) < 3:
            raise _Problem(f"the stream came in {len(chunks)} piece(s)")
        if not chunks[-1].usage:
            raise _Problem("the stream's last piece has no usage")
        return f"{len(chunks)} pieces, {chunks[-1].usage.completion_tokens} tokens"

    def logprobs(self) -> str:
        answer = self._client.completions.create(model=self._model, prompt="The sky is", max_tokens=1, logprobs=2)
        found = answer.choices[0].logprobs
        if not found or not found.top_logprobs:
            raise _Problem("the completion has no log-probabilities: is max_logprobs 0?")
        return f"{dict(found.top_logprobs[0])}"

    def prefix_cache(self) -> str:
        for attempt in range(1, CACHE_TRIES + 1):
            usage = self._client.completions.create(model=self._model, prompt=REPEATED, max_tokens=1).usage
            details = usage.prompt_tokens_details
            if details is None:
                raise _Problem("usage has no cached tokens: set enable_prompt_tokens_details in the engine options")
            if details.cached_tokens:
                return f"{details.cached_tokens} of {usage.prompt_tokens} tokens cached at try {attempt}"
        raise _Problem(f"no cached token in {CACHE_TRIES} equal prompts: is enable_prefix_caching off?")

    def replica_count(self) -> str:
        response = httpx.get(f"{self._base_url}/v1/populations/replicas", timeout=30, headers=api_key_headers())
        response.raise_for_status()
        found = response.json()["data"]
        if len(found) < self._replicas:
            raise _Problem(f"{len(found)} replica(s) are ready, {self._replicas} wanted")
        engine = found[0]["engine"] if found else {}
        version = "SIMULATED: no model runs" if engine.get("simulated") else engine.get("engine_version")
        return f"{len(found)} ready, tensor parallel {engine.get('tensor_parallel_size')}, {version}"
