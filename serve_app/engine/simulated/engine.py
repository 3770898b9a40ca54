"""The simulated engine behind the engine's protocol.

Source of the default coefficients: vLLM 0.32 at TP=2 on two cores with SmolLM2-135M. 384 prompts of 205 tokens (160
shared) ran at 24-26 rows/s: 40 ms a row of 45 uncached tokens, or 0.88 ms a token.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from serve_app.engine.identity import prompt_settings
from serve_app.engine.protocol import ASGIApp
from serve_app.engine.simulated import answers
from serve_app.engine.simulated.device import (
    TOKEN_BYTES,
    Count,
    Device,
    Served,
    Started,
    count_nothing,
    note_nothing,
)
from serve_app.engine.simulated.requests import RequestRefused, StructuredOutputs
from serve_app.models.catalog import resolve_model
from serve_app.schema import Chunk, Completion, EngineInfo
from serve_app.settings import SimulatedSettings

DEFAULT_MODEL = "simulated"
DEFAULT_MODEL_LEN = 8192


class SimulatedEngine:
    """See `engine.protocol.Engine`. Of `options`, those of a vLLM engine, only names and sizes are read.

    `count` receives the tokens of HTTP requests, `started` how many prompts have their first token.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        settings: SimulatedSettings,
        *,
        count: Count = count_nothing,
        started: Started = note_nothing,
    ) -> None:
        served = options.get("served_model_name") or options.get("model") or DEFAULT_MODEL
        names = (served,) if isinstance(served, str) else tuple(map(str, served))
        self._options = options
        self._device = Device(settings)
        self._served = Served(
            names,
            max_model_len=int(options.get("max_model_len") or DEFAULT_MODEL_LEN),
            device=self._device,
            created=int(time.time()),
            embedding_dimensions=settings.embedding_dimensions,
            count=count,
            started=started,
        )
        self._app: ASGIApp | None = None

    async def start(self) -> None:
        return None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model=self._served.names[0],
            engine_version="simulated",
            tensor_parallel_size=int(self._options.get("tensor_parallel_size") or 1),
            max_model_len=self._served.max_model_len,
            prefix_caching=True,
            simulated=True,
            tokenizer=str(resolve_model(self._options["model"])) if self._options.get("model") else "",
            prompts=prompt_settings(self._options),
        )

    def app(self) -> ASGIApp:
        if self._app is None:
            from serve_app.engine.simulated.app import build_app

            self._app = build_app(self._served)
        return self._app

    async def run(self, chunk: Chunk) -> AsyncGenerator[dict[int, Completion]]:
        started = time.perf_counter()
        cached = await self._device.prefill(chunk.prompts)
        try:
            completions = [_complete(prompt, chunk) for prompt in chunk.prompts]
        except (RequestRefused, ValueError) as error:  # as vLLM refuses invalid sampling
            yield dict.fromkeys(range(len(chunk.prompts)), Completion(status="invalid", error=str(error)))
            return
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, one in enumerate(completions):
            by_length[one.completion_tokens].append(place)
        generated = 1  # by the prefill
        for tokens in sorted(by_length):
            await self._device.decode(tokens - generated)
            generated = tokens
            latency_ms = (time.perf_counter() - started) * 1000
            yield {
                place: msgspec.structs.replace(completions[place], cached_tokens=cached[place], latency_ms=latency_ms)
                for place in by_length[tokens]
            }

    @property
    def waiting(self) -> int:
        return self._device.waiting

    async def check_health(self) -> None:
        self._device.check()

    async def shutdown(self) -> None:
        self._device.fail()


def _complete(prompt: bytes, chunk: Chunk) -> Completion:
    tokens = len(prompt) // TOKEN_BYTES
    if chunk.label_ids:
        logprobs = answers.label_logprobs(prompt, len(chunk.label_ids))
        return Completion(label_logprobs=logprobs, finish_reason="length", prompt_tokens=tokens, completion_tokens=1)
    sampling = chunk.sampling
    outputs = StructuredOutputs.model_validate(sampling.structured) if sampling.structured else None
    found = answers.generate(
        answers.writer_of(None, outputs),
        answers.random_of(prompt, temperature=sampling.temperature, seed=sampling.seed, index=0),
        answers.Limits(sampling.max_tokens, stop=sampling.stop),
    )
    return Completion(
        text=found.text,
        finish_reason=found.finish_reason,
        prompt_tokens=tokens,
        completion_tokens=len(found.token_ids),
    )
