"""Answers `/v1/responses`: the chat answer as items, whole or as events. Nothing is stored."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

from serve_app.engine.simulated.chat import Call, Chat, text_pieces
from serve_app.engine.simulated.device import Served
from serve_app.engine.simulated.envelope import SYSTEM_FINGERPRINT, new_id
from serve_app.engine.simulated.requests import (
    ChatRequest,
    FlatNamedTool,
    Function,
    JsonSchema,
    Message,
    Named,
    NamedTool,
    ResponseFormat,
    ResponsesRequest,
    TextFormat,
    Tool,
    refused,
)
from serve_app.engine.simulated.tokens import encode

Item = dict[str, Any]


def as_chat(request: ResponsesRequest) -> ChatRequest:
    """The same request for the chat route. Raises RequestRefused for invalid input."""
    tools = [_tool(tool.name, tool.description, tool.parameters) for tool in request.tools if tool.type == "function"]
    choice: Any = request.tool_choice
    if isinstance(choice, FlatNamedTool):
        choice = NamedTool(function=Named(name=choice.name))
    return ChatRequest(
        messages=_messages(request),
        model=request.model,
        max_completion_tokens=request.max_output_tokens,
        seed=request.seed,
        temperature=request.temperature,
        top_p=request.top_p,
        tools=tools or None,
        tool_choice=choice if tools else None,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_response_format(request.text.format if request.text else None),
    )


def _tool(name: str | None, description: str | None, parameters: dict[str, Any] | None) -> Tool:
    if not name:
        raise refused("A function needs a name.", "tools")
    return Tool(function=Function(name=name, description=description, parameters=parameters))


def _response_format(asked: TextFormat | None) -> ResponseFormat | None:
    if asked is None:
        return None
    schema = JsonSchema(name=asked.name, schema_=asked.schema_) if asked.type == "json_schema" else None
    return ResponseFormat(type=asked.type, json_schema=schema)


def _messages(request: ResponsesRequest) -> list[Message]:
    messages = [Message(role="system", content=request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return [*messages, Message(role="user", content=request.input)]
    messages += [message for item in request.input if (message := _message(item)) is not None]
    if not messages:
        raise refused("input must not be empty.", "input")
    return messages


def _message(item: Item) -> Message | None:
    kind = item.get("type", "message")
    if kind == "function_call_output":
        return Message(role="tool", content=str(item.get("output")))
    if kind == "function_call":
        return Message(role="assistant", tool_calls=[item])
    if kind == "reasoning":
        return None
    if kind != "message" or item.get("role") not in ("user", "assistant", "system", "developer"):
        raise refused(f"input has an item that is not known here: {json.dumps(item)[:100]}", "input")
    return Message.model_validate({"role": item["role"], "content": item.get("content")})


def whole(request: ResponsesRequest, chat: Chat) -> dict[str, Any]:
    """The whole answer; fields as in vLLM's ResponsesResponse."""
    return _response(request, chat, new_id("resp_"), list(_items(chat)))


def _response(request: ResponsesRequest, chat: Chat, response_id: str, output: list[Item] | None) -> dict[str, Any]:
    """A response; without output it is in progress."""
    cut = chat.choices[0].finish_reason == "length"
    status = "in_progress" if output is None else "incomplete" if cut else "completed"
    return {
        "id": response_id,
        "created_at": chat.created,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": request.instructions,
        "metadata": request.metadata,
        "model": chat.model,
        "object": "response",
        "output": output or [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "tool_choice": request.model_dump(include={"tool_choice"})["tool_choice"],
        "tools": [tool.model_dump() for tool in request.tools],
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "background": False,
        "max_output_tokens": chat.max_tokens,
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": status,
        "text": request.text.model_dump(by_alias=True) if request.text else None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": None if output is None else _usage(chat),
        "user": request.user,
        "metrics": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }


def _usage(chat: Chat) -> dict[str, Any]:
    return {
        "input_tokens": len(chat.prompt),
        "input_tokens_details": {"cached_tokens": chat.cached, "cache_write_tokens": 0},
        "output_tokens": chat.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(chat.prompt) + chat.completion_tokens,
    }


def _items(chat: Chat) -> list[Item]:
    choice = chat.choices[0]
    if choice.calls:
        return [_call_item(call) for call in choice.calls]
    status = "incomplete" if choice.finish_reason == "length" else "completed"
    return [_message_item(new_id("msg_"), [_text_part(choice.found.text)], status)]


def _message_item(item_id: str, content: list[Item], status: str) -> Item:
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def _call_item(call: Call) -> Item:
    head = {"type": "function_call", "id": call.id.replace("call_", "fc_"), "call_id": call.id}
    return {**head, "name": call.name, "arguments": call.arguments, "status": "completed"}


def _text_part(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}


async def events(served: Served, request: ResponsesRequest, chat: Chat) -> AsyncIterator[Item]:
    numbers, response_id, items = count(), new_id("resp_"), _items(chat)
    begun = _response(request, chat, response_id, None)
    for kind in ("response.created", "response.in_progress"):
        yield {"type": kind, "sequence_number": next(numbers), "response": begun}
    for i, item in enumerate(items):
        parts = _call_events(item) if item["type"] == "function_call" else _message_events(item)
        for event in parts:
            if event["type"].endswith(".delta"):
                await served.device.decode(1)
            yield {**event, "sequence_number": next(numbers), "output_index": i}
    done = _response(request, chat, response_id, items)
    kind = "response.completed" if done["status"] == "completed" else "response.incomplete"
    yield {"type": kind, "sequence_number": next(numbers), "response": done}


def _message_events(item: Item) -> list[Item]:
    (part,) = item["content"]
    place = {"item_id": item["id"], "content_index": 0}
    return [
        {"type": "response.output_item.added", "item": _message_item(item["id"], [], "in_progress")},
        {"type": "response.content_part.added", **place, "part": _text_part("")},
        *(
            {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
            for piece in text_pieces(encode(part["text"]))
        ),
        {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "item": item},
    ]


def _call_events(item: Item) -> list[Item]:
    place = {"item_id": item["id"]}
    return [
        {"type": "response.output_item.added", "item": {**item, "arguments": "", "status": "in_progress"}},
        *(
            {"type": "response.function_call_arguments.delta", **place, "delta": piece}
            for piece in text_pieces(encode(item["arguments"]))
        ),
        {
            "type": "response.function_call_arguments.done",
            **place,
            "name": item["name"],
            "arguments": item["arguments"],
        },
        {"type": "response.output_item.done", "item": item},
    ]
