from __future__ import annotations

import json
from typing import Any

from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Answer(BaseModel):
    city: str
    degrees: int


async def ask(client: AsyncOpenAI, given: Any = "Hello", **fields: Any) -> Response:
    raw = await client.responses.with_raw_response.create(model="sim", input=given, **fields)
    found = json.loads(raw.content)
    assert found["system_fingerprint"] == "simulated"
    return Response.model_validate(found)


async def test_an_answer_is_a_message(client: AsyncOpenAI) -> None:
    answer = await ask(client, instructions="Be brief.")
    assert answer.output_text.startswith("This is a simulated answer")
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


async def test_the_same_chat_has_the_same_answer(client: AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(model="sim", messages=[{"role": "user", "content": "Hello"}])
    for given in ("Hello", [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]):
        assert (await ask(client, given)).output_text == chat.choices[0].message.content


async def test_an_answer_that_was_cut_is_incomplete(client: AsyncOpenAI) -> None:
    answer = await ask(client, max_output_tokens=4)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_a_tool_is_called_and_its_output_is_answered_by_text(client: AsyncOpenAI) -> None:
    first = await ask(client, "Hello", tools=[WEATHER])
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, set(json.loads(call.arguments))) == ("get_weather", {"city"})
    given = [
        {"role": "user", "content": "Hello"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"},
    ]
    assert (await ask(client, given, tools=[WEATHER])).output_text


async def test_a_pydantic_model_is_parsed(client: AsyncOpenAI) -> None:
    answer = await client.responses.parse(model="sim", input="Hello", text_format=Answer)
    assert isinstance(answer.output_parsed, Answer)


async def test_events_add_up_to_the_response(client: AsyncOpenAI) -> None:
    whole = await ask(client)
    async with client.responses.stream(model="sim", input="Hello") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert final.output_text == whole.output_text


async def test_a_streamed_call_has_its_arguments(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="sim", input="Hello", tools=[WEATHER]) as stream:
        pieces = [event.delta async for event in stream if event.type == "response.function_call_arguments.delta"]
        final = await stream.get_final_response()
    (call,) = final.output
    assert call.type == "function_call"
    assert "".join(pieces) == call.arguments
