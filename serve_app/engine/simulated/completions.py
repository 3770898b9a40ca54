"""Answers `/v1/completions`: one prompt or many, whole or streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from serve_app.engine.simulated import answers
from serve_app.engine.simulated.answers import Generation
from serve_app.engine.simulated.device import Served
from serve_app.engine.simulated.envelope import SYSTEM_FINGERPRINT, check_model, new_id, room, streamed_usage, usage
from serve_app.engine.simulated.requests import CompletionRequest, prompt_list
from serve_app.engine.simulated.tokens import decode, encode
from serve_app.schema import pack_tokens


@dataclass(frozen=True, slots=True)
class Choice:
    prompt: list[int]
    found: Generation


@dataclass(frozen=True, slots=True)
class Texts:
    """A computed request. Choices are in the prompts' order, `n` of each."""

    request: CompletionRequest
    id: str
    created: int
    model: str
    prompt_tokens: int
    cached: int
    choices: tuple[Choice, ...]

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.found.token_ids) for choice in self.choices)


async def compute(served: Served, request: CompletionRequest) -> Texts:
    """Compute the choices. Raises RequestRefused for an invalid request, EngineFailed when the device is lost."""
    model = check_model(served, request.model)
    write = answers.writer_of(request.response_format, request.structured_outputs)
    prompts = [encode(one) if isinstance(one, str) else one for one in prompt_list(request.prompt, "prompt")]
    choices = []
    for prompt in prompts:
        most = room(served, len(prompt), request.max_tokens, "prompt")
        limits = answers.Limits(
            most, request.min_tokens, request.ignore_eos, request.stops, request.include_stop_str_in_output
        )
        for i in range(request.n):
            rng = answers.random_of(pack_tokens(prompt), temperature=request.temperature, seed=request.seed, index=i)
            choices.append(Choice(prompt, answers.generate(write, rng, limits)))
    completion_tokens = sum(len(choice.found.token_ids) for choice in choices)
    cached = await served.prefill([pack_tokens(prompt) for prompt in prompts], completion_tokens)
    total = sum(map(len, prompts))
    return Texts(request, new_id("cmpl-"), int(time.time()), model, total, sum(cached), tuple(choices))


def whole(texts: Texts) -> dict[str, Any]:
    """The whole answer; fields as in vLLM's CompletionResponse."""
    return {
        "id": texts.id,
        "object": "text_completion",
        "created": texts.created,
        "model": texts.model,
        "choices": [_whole_choice(texts.request, i, choice) for i, choice in enumerate(texts.choices)],
        "service_tier": None,
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "usage": usage(texts.prompt_tokens, texts.completion_tokens, texts.cached),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _whole_choice(request: CompletionRequest, index: int, choice: Choice) -> dict[str, Any]:
    found = choice.found
    return {
        "index": index,
        "text": (decode(choice.prompt) if request.echo else "") + found.text,
        "logprobs": _logprobs(request, choice) if request.logprobs is not None else None,
        "finish_reason": found.finish_reason,
        "stop_reason": found.stop_reason,
        "token_ids": list(found.token_ids) if request.return_token_ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": choice.prompt if request.return_token_ids else None,
        "routed_experts": None,
    }


def _logprobs(request: CompletionRequest, choice: Choice) -> dict[str, Any]:
    """OpenAI's older form: one list a property. An echoed prompt comes first; its first token has no value."""
    found = answers.token_logprobs(
        choice.prompt, choice.found.token_ids, request.logprobs or 0, request.logprob_token_ids
    )
    entries: list[dict[int, float] | None] = [*found]
    tokens = [*choice.found.token_ids]
    if request.echo:
        of_prompt = answers.token_logprobs(choice.prompt[:1], choice.prompt[1:], request.logprobs or 0)
        entries, tokens = [None, *of_prompt, *entries], [*choice.prompt, *tokens]
    offsets, position = [], 0
    for token in tokens:
        offsets.append(position)
        position += len(decode([token]))
    return {
        "text_offset": offsets,
        "token_logprobs": [None if one is None else one[token] for one, token in zip(entries, tokens, strict=True)],
        "tokens": [decode([token]) for token in tokens],
        "top_logprobs": [
            None if one is None else {decode([token]): logprob for token, logprob in one.items()} for one in entries
        ],
    }


async def pieces(served: Served, texts: Texts) -> AsyncIterator[dict[str, Any]]:
    """The answer as chunks: one token of each choice a step, then usage if requested."""
    options = texts.request.stream_options
    streams = [list(_steps(texts.request, i, choice)) for i, choice in enumerate(texts.choices)]
    sent = 0
    for step in range(max(len(steps) for steps in streams)):
        if step:
            await served.device.decode(1)
        for steps in streams:
            if step < len(steps):
                sent += 1
                chunk = _chunk(texts, [steps[step]])
                if options and options.continuous_usage_stats:
                    chunk["usage"] = streamed_usage(texts.prompt_tokens, sent, texts.cached)
                yield chunk
    if options and options.include_usage:
        total = streamed_usage(texts.prompt_tokens, texts.completion_tokens, texts.cached)
        yield {**_chunk(texts, []), "usage": total}


def _steps(request: CompletionRequest, index: int, choice: Choice) -> Iterator[dict[str, Any]]:
    """One token each. The first has the echoed prompt, the last the reason."""
    logprobs = _logprobs(request, choice) if request.logprobs is not None else None
    texts = [decode([token]) for token in choice.found.token_ids] or [""]
    echoed = len(choice.prompt) if request.echo else 0
    for i, text in enumerate(texts):
        last = i == len(texts) - 1
        begin, end = (0 if i == 0 else echoed + i), echoed + i + 1
        yield {
            "index": index,
            "text": (decode(choice.prompt) if request.echo and i == 0 else "") + text,
            "logprobs": {name: values[begin:end] for name, values in logprobs.items()} if logprobs else None,
            "finish_reason": choice.found.finish_reason if last else None,
            "stop_reason": choice.found.stop_reason if last else None,
        }


def _chunk(texts: Texts, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": texts.id,
        "object": "text_completion",
        "created": texts.created,
        "model": texts.model,
        "choices": choices,
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }
