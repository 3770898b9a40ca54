"""Answers `/v1/chat/completions`: messages and tool calls, whole or streamed."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from serve_app.engine.simulated import answers
from serve_app.engine.simulated.answers import Generation
from serve_app.engine.simulated.device import Served
from serve_app.engine.simulated.envelope import SYSTEM_FINGERPRINT, check_model, new_id, room, streamed_usage, usage
from serve_app.engine.simulated.requests import ChatRequest, NamedTool, Tool
from serve_app.engine.simulated.structured import arguments_of
from serve_app.engine.simulated.tokens import chat_tokens, decode, encode, token_bytes
from serve_app.schema import pack_tokens


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Text or tool calls, with the `tokens` spent."""

    found: Generation
    calls: tuple[Call, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A computed request."""

    request: ChatRequest
    id: str
    created: int
    model: str
    prompt: list[int]
    max_tokens: int
    cached: int
    choices: tuple[Choice, ...]

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.found.token_ids) for choice in self.choices)


async def compute(served: Served, request: ChatRequest) -> Chat:
    """Compute the choices. Raises RequestRefused for an invalid request, EngineFailed when the device is lost."""
    model = check_model(served, request.model)
    prompt = chat_tokens(request.messages, request.tools)
    most = room(served, len(prompt), request.max_completion_tokens or request.max_tokens)
    packed = pack_tokens(prompt)
    drawn = [
        _choice(request, answers.random_of(packed, temperature=request.temperature, seed=request.seed, index=i), most)
        for i in range(request.n)
    ]
    (cached,) = await served.prefill([packed], sum(len(choice.found.token_ids) for choice in drawn))
    return Chat(request, new_id("chatcmpl-"), int(time.time()), model, prompt, most, cached, tuple(drawn))


def _choice(request: ChatRequest, rng: Random, most: int) -> Choice:
    limits = answers.Limits(
        most, request.min_tokens, request.ignore_eos, request.stops, request.include_stop_str_in_output
    )
    tools = chosen_tools(request, rng)
    if not tools:
        said = "\n".join(message.text for message in request.messages)
        write = answers.writer_of(request.response_format, request.structured_outputs, said)
        found = answers.generate(write, rng, limits)
        return Choice(found, (), found.finish_reason)
    calls = tuple(
        Call(f"call_{rng.getrandbits(96):024x}", tool.function.name, arguments_of(tool.function.parameters, rng))
        for tool in tools
    )
    written = encode("".join(call.name + call.arguments for call in calls))
    if len(written) > most:
        # Parsers of models differ for truncated calls; here there is no call.
        cut = Generation(decode(written[:most]), tuple(written[:most]), "length")
        return Choice(cut, (), "length")
    reason = "stop" if isinstance(request.tool_choice, NamedTool) else "tool_calls"  # as in vLLM
    return Choice(Generation("", tuple(written), "stop"), calls, reason)


def chosen_tools(request: ChatRequest, rng: Random) -> list[Tool]:
    """See the package's docstring."""
    choice, tools = request.tool_choice or "auto", request.tools or []
    if isinstance(choice, NamedTool):
        return [tool for tool in tools if tool.function.name == choice.function.name][:1]
    if choice == "none" or not tools or (choice == "auto" and request.messages[-1].role in ("tool", "function")):
        return []
    said = next((message.text for message in reversed(request.messages) if message.role == "user"), "")
    named = [tool for tool in tools if re.search(rf"(?<!\w){re.escape(tool.function.name)}(?!\w)", said)]
    called = named or [rng.choice(tools)]
    return called if request.parallel_tool_calls is not False else called[:1]


def whole(chat: Chat) -> dict[str, Any]:
    """The whole answer; fields as in vLLM's ChatCompletionResponse."""
    request = chat.request
    return {
        "id": chat.id,
        "object": "chat.completion",
        "created": chat.created,
        "model": chat.model,
        "choices": [_whole_choice(chat, i, choice) for i, choice in enumerate(chat.choices)],
        "service_tier": None,
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "usage": usage(len(chat.prompt), chat.completion_tokens, chat.cached),
        "prompt_logprobs": None,
        "prompt_token_ids": chat.prompt if request.return_token_ids else None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _whole_choice(chat: Chat, index: int, choice: Choice) -> dict[str, Any]:
    found, request = choice.found, chat.request
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.calls else found.text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    if choice.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": logprobs_of(chat, choice)} if request.logprobs else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": found.stop_reason,
        "token_ids": list(found.token_ids) if request.return_token_ids else None,
        "routed_experts": None,
    }


def logprobs_of(chat: Chat, choice: Choice) -> list[dict[str, Any]]:
    request = chat.request
    top = request.top_logprobs or 0
    found = answers.token_logprobs(chat.prompt, choice.found.token_ids, top, request.logprob_token_ids)
    shown = slice(None) if request.logprob_token_ids else slice(top)
    entries = []
    for logprobs in found:
        tokens = [_logprob(token, logprob) for token, logprob in logprobs.items()]
        entries.append({**tokens[0], "top_logprobs": tokens[shown]})
    return entries


def _logprob(token: int, logprob: float) -> dict[str, Any]:
    return {"token": decode([token]), "logprob": logprob, "bytes": list(token_bytes(token))}


async def pieces(served: Served, chat: Chat) -> AsyncIterator[dict[str, Any]]:
    """The answer as chunks: roles, then one token of each choice a step, then usage if requested."""
    options = chat.request.stream_options
    for i in range(len(chat.choices)):
        yield _chunk(chat, [_delta(i, {"role": "assistant", "content": ""})])
    streams = [list(_deltas(chat, i, choice)) for i, choice in enumerate(chat.choices)]
    sent = 0
    for step in range(max(len(deltas) for deltas in streams)):
        if step:
            await served.device.decode(1)
        for deltas in streams:
            if step < len(deltas):
                sent += deltas[step][0]
                chunk = _chunk(chat, [deltas[step][1]])
                if options and options.continuous_usage_stats:
                    chunk["usage"] = streamed_usage(len(chat.prompt), sent, chat.cached)
                yield chunk
    if options and options.include_usage:
        total = streamed_usage(len(chat.prompt), chat.completion_tokens, chat.cached)
        yield {**_chunk(chat, []), "usage": total}


def _deltas(chat: Chat, index: int, choice: Choice) -> Iterator[tuple[int, dict[str, Any]]]:
    """(tokens, chunk's choice); the last has the reason."""
    deltas: list[tuple[dict[str, Any], dict[str, Any] | None]]
    if choice.calls:
        deltas = [({"tool_calls": [delta]}, None) for delta in _call_deltas(choice.calls)]
    else:
        logprobs = logprobs_of(chat, choice) if chat.request.logprobs else None
        deltas = [
            ({"content": piece}, {"content": [logprobs[i]]} if logprobs is not None else None)
            for i, piece in enumerate(text_pieces(choice.found.token_ids))
        ]
    for i, (delta, logprob) in enumerate(deltas or [({"content": ""}, None)]):
        entry = _delta(index, delta, logprob)
        if i >= len(deltas) - 1:
            entry |= {"finish_reason": choice.finish_reason, "stop_reason": choice.found.stop_reason}
        yield min(1, len(deltas)), entry


def _call_deltas(calls: tuple[Call, ...]) -> Iterator[dict[str, Any]]:
    for i, call in enumerate(calls):
        head = {"id": call.id, "type": "function", "index": i}
        yield {**head, "function": {"name": call.name, "arguments": ""}}
        for piece in text_pieces(encode(call.arguments)):
            yield {"index": i, "function": {"arguments": piece}}


def text_pieces(token_ids: list[int] | tuple[int, ...]) -> list[str]:
    return [decode([token]) for token in token_ids]


def _delta(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _chunk(chat: Chat, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": chat.id,
        "object": "chat.completion.chunk",
        "created": chat.created,
        "model": chat.model,
        "choices": choices,
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }
