"""Scorers by the project's client: by handle in the cluster, or over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from serve_app.client.populations import PopulationClient
from serve_app.client.replicas import ReplicaClient
from serve_app.errors import BadSettings, JobConflict, ScoringFailed
from serve_app.schema import Completion, EngineInfo, Outcome, Row
from serve_app.spec import JobSpec
from serve_app.workloads.icm.scoring.prompts import Prompt
from serve_app.workloads.icm.scoring.protocol import Failure, LabelLogprobs

# Part of row identity: change with prompts.
WORKLOAD = "icm/v1"
WORDS_FIX = "choose label words that are one token each (--words), with the space that stands before them"


class ReplicaScorer:
    """Scores prompts in one call over the replicas, from a process in the cluster; a context manager. `client`, a
    `ReplicaClient`, lives in this scorer's event loop.
    """

    def __init__(self, client: ReplicaClient) -> None:
        self._client = client
        self._loop = asyncio.Runner()

    def __enter__(self) -> ReplicaScorer:
        self._loop.run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._client.__aexit__(kind, error, trace))
        self._loop.close()

    def engine(self) -> EngineInfo:
        """The replicas' engine info. Raises EngineFailed without replicas."""
        return self._loop.run(self._client.engine())

    def __call__(self, prompts: Sequence[Prompt]) -> list[LabelLogprobs | Failure]:
        """One answer per prompt. Raises BadSettings for multi-token words, EngineFailed without replicas."""
        words = _words(prompts)
        asked = [_messages(prompt) if prompt.chat else prompt.text for prompt in prompts]
        try:
            completions = self._loop.run(self._client.score(asked, words))
        except BadSettings as error:
            raise _about_words(error) from error
        return [_read_completion(completion) for completion in completions]


class PopulationScorer:
    """Each call is a population of the server at `client`, deleted after reading; it survives driver restarts.

    `request` are further job fields: `model`, `price`, and `provider`, an external OpenAI-compatible endpoint with rate
    limits (`spec.Provider`), used instead of replicas.
    """

    def __init__(self, client: PopulationClient, **request: Any) -> None:
        self._client = client
        self._request = request
        self._name = f"icm-{secrets.token_hex(4)}"  # keeps searches' jobs apart
        self._numbers = itertools.count(1)
        self.simulated = False  # whether any answer was simulated

    def __call__(self, prompts: Sequence[Prompt]) -> list[LabelLogprobs | Failure]:
        """One answer per prompt. Raises BadSettings for multi-token words, ServerUnavailable."""
        words = _words(prompts)
        rows = [
            Row(str(number), messages=tuple(_messages(prompt))) if prompt.chat else Row(str(number), prompt=prompt.text)
            for number, prompt in enumerate(prompts)
        ]
        job: dict[str, Any] = {"workload": WORKLOAD, "labels": words, "job_id": f"{self._name}-{next(self._numbers)}"}
        job["metadata"] = {"group": self._name}
        job_id = self._client.submit(JobSpec.of(rows, **job, **self._request))
        status = self._client.wait(job_id)
        self.simulated = self.simulated or status.simulated
        outcomes = {outcome.custom_id: outcome for outcome in self._client.outcomes(job_id)}
        if not outcomes and not status.state.complete:
            message = status.message or status.state
            if "labels" in message:
                raise _about_words(BadSettings(message))
            raise ScoringFailed(f"job {job_id} ended {status.state}: {message}")
        self._forget(job_id)
        return [_read_outcome(outcomes.get(str(number)), words) for number in range(len(prompts))]

    def _forget(self, job_id: str) -> None:
        with suppress(JobConflict):  # still finishing; leaves a small folder
            self._client.delete(job_id)


def _words(prompts: Sequence[Prompt]) -> tuple[str, str]:
    words = {prompt.words for prompt in prompts}
    if len(words) != 1:
        raise BadSettings(f"the prompts of one call have the same label words, not {sorted(words)}")
    return words.pop()


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt.text}]


def _about_words(error: BadSettings) -> BadSettings:
    return BadSettings(f"{error}; {WORDS_FIX}")


def _read_completion(completion: Completion) -> LabelLogprobs | Failure:
    if completion.status != "ok":
        return Failure(completion.error or completion.status, completion.status == "invalid")
    negative, positive = completion.label_logprobs
    return LabelLogprobs((negative, positive), completion.prompt_tokens, completion.cached_tokens)


def _read_outcome(outcome: Outcome | None, words: tuple[str, str]) -> LabelLogprobs | Failure:
    if outcome is None:
        return Failure("the job ended before it was answered")
    if outcome.status != "ok" or outcome.value is None:
        return Failure(outcome.error or outcome.status, outcome.status == "invalid")
    logprobs = outcome.value["logprobs"]
    return LabelLogprobs((logprobs[words[0]], logprobs[words[1]]), outcome.prompt_tokens, outcome.cached_tokens)
