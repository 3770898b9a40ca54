"""Chat as the openai package asks for it, and its answers by that package's own types."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import httpx
import jsonschema
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "stop"}},
]


async def ask(client: AsyncOpenAI, **fields: Any) -> ChatCompletion:
    """The answer, which must be valid by the type itself: the client takes anything."""
    raw = await client.chat.completions.with_raw_response.create(**{"model": "sim", "messages": HELLO, **fields})
    return ChatCompletion.model_validate(json.loads(raw.content))


async def stream(client: AsyncOpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    asked = {"model": "sim", "messages": HELLO, "stream": True, **fields}
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked)]
    return [ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True)) for chunk in chunks]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_an_answer_is_text_that_says_simulated(client: AsyncOpenAI) -> None:
    answer = await ask(client)
    assert answer.system_fingerprint == "simulated"
    assert answer.choices[0].message.content is not None
    assert answer.choices[0].message.content.startswith("This is a simulated answer")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_equal_requests_have_equal_answers_and_others_have_others(client: AsyncOpenAI) -> None:
    async def text(**fields: Any) -> str:
        return (await ask(client, **fields)).choices[0].message.content or ""

    assert await text() == await text()
    assert await text(seed=1) == await text(seed=1)
    other: Any = [{"role": "user", "content": "Hello!"}]
    assert len({await text(), await text(seed=1), await text(seed=2), await text(messages=other)}) == 4
    assert await text(temperature=0, seed=1) == await text(temperature=0, seed=2)


async def test_n_choices_differ(client: AsyncOpenAI) -> None:
    answer = await ask(client, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_of_tokens_cuts_and_says_so(client: AsyncOpenAI, field: str) -> None:
    whole, cut = await ask(client), await ask(client, **{field: 5})
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 5
    assert (whole.choices[0].message.content or "").startswith(cut.choices[0].message.content or "?")


async def test_a_stop_string_ends_the_text_before_it(client: AsyncOpenAI) -> None:
    answer = await ask(client, stop=["never there", " answer"])
    assert answer.choices[0].message.content == "This is a simulated"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_dump()["stop_reason"] == " answer"


async def test_ignore_eos_fills_max_tokens(client: AsyncOpenAI) -> None:
    answer = await ask(client, max_tokens=300, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 300


async def test_a_stream_says_what_the_whole_answer_says(client: AsyncOpenAI) -> None:
    answer, chunks = await ask(client, n=1), await stream(client)
    assert text_of(chunks) == answer.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.system_fingerprint for chunk in chunks} == {"simulated"}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_ends_with_usage_if_asked(client: AsyncOpenAI) -> None:
    answer, chunks = await ask(client), await stream(client, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert answer.usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


async def test_a_stream_of_several_choices_has_them_all(client: AsyncOpenAI) -> None:
    answer, chunks = await ask(client, n=2), await stream(client, n=2)
    for choice in answer.choices:
        of_it = [chunk for chunk in chunks if chunk.choices[0].index == choice.index]
        assert text_of(of_it) == choice.message.content
        assert of_it[-1].choices[0].finish_reason == "stop"


async def test_a_stream_is_sse_that_ends_with_done(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-serve-app-simulated"] == "true"
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(json.loads(chunk.removeprefix("data: "))["object"] == "chat.completion.chunk" for chunk in chunks)


@pytest.mark.parametrize("top", [0, 5, 20])
async def test_logprobs_fall_and_are_below_zero(client: AsyncOpenAI, top: int) -> None:
    answer = await ask(client, logprobs=True, top_logprobs=top, max_tokens=10)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == answer.choices[0].message.content
    for entry in logprobs.content:
        values = [one.logprob for one in entry.top_logprobs]
        assert len({one.token for one in entry.top_logprobs}) == len(values) == top
        assert values == sorted(values, reverse=True)
        assert all(value <= 0 for value in [*values, entry.logprob])
        assert bytes(entry.bytes or ()).decode() == entry.token


async def test_a_streams_logprobs_are_those_of_its_tokens(client: AsyncOpenAI) -> None:
    chunks = await stream(client, logprobs=True, top_logprobs=2, max_tokens=4)
    for chunk in chunks[1:]:
        logprobs = chunk.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [entry.token for entry in logprobs.content] == [chunk.choices[0].delta.content]


async def test_labels_are_scored_as_by_vllm(client: AsyncOpenAI) -> None:
    labels = [ord("Y"), ord("N")]
    answer = await ask(client, logprobs=True, max_tokens=1, extra_body={"logprob_token_ids": labels})
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert {"Y", "N"} <= {one.token for one in logprobs.content[0].top_logprobs}


async def test_an_image_is_taken_and_is_part_of_the_question(client: AsyncOpenAI) -> None:
    answers = []
    for image in ("A", "B"):
        url = f"data:image/png;base64,{image * 50_000}"
        content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        answers.append((await ask(client, messages=[{"role": "user", "content": content}])).choices[0].message.content)
    assert len(set(answers)) == 2


# --- tools ---


def names(answer: ChatCompletion) -> list[str]:
    return [call.function.name for call in answer.choices[0].message.tool_calls or () if call.type == "function"]


async def test_a_tool_that_the_user_names_is_called_with_valid_arguments(client: AsyncOpenAI) -> None:
    asked: Any = [{"role": "user", "content": "Use get_weather for Oslo."}]
    answer = await ask(client, messages=asked, tools=TOOLS)
    assert names(answer) == ["get_weather"]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    (call,) = answer.choices[0].message.tool_calls or [None]
    assert call is not None
    assert call.type == "function"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    assert set(json.loads(call.function.arguments)) == {"city", "unit"}


async def test_several_that_are_named_are_called_in_parallel_unless_that_is_off(client: AsyncOpenAI) -> None:
    asked: Any = [{"role": "user", "content": "get_weather, get_time"}]
    assert names(await ask(client, messages=asked, tools=TOOLS)) == ["get_weather", "get_time"]
    assert names(await ask(client, messages=asked, tools=TOOLS, parallel_tool_calls=False)) == ["get_weather"]


async def test_after_a_tools_answer_comes_text(client: AsyncOpenAI) -> None:
    first = await ask(client, tools=TOOLS)
    (call,) = first.choices[0].message.tool_calls or [None]
    assert call is not None
    asked: Any = [
        *HELLO,
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"},
    ]
    last = await ask(client, messages=asked, tools=TOOLS)
    assert names(last) == []
    assert "simulated answer" in (last.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("choice", "called", "reason"),
    [
        ("none", 0, "stop"),
        ("auto", 1, "tool_calls"),
        ("required", 1, "tool_calls"),
        ({"type": "function", "function": {"name": "stop"}}, 1, "stop"),
    ],
)
async def test_tool_choice_is_obeyed(client: AsyncOpenAI, choice: Any, called: int, reason: str) -> None:
    answer = await ask(client, tools=TOOLS, tool_choice=choice)
    assert len(names(answer)) == called
    assert answer.choices[0].finish_reason == reason
    if isinstance(choice, dict):
        assert names(answer) == ["stop"]


async def test_streamed_calls_are_the_whole_answers_calls(client: AsyncOpenAI) -> None:
    asked: Any = [{"role": "user", "content": "get_weather, get_time"}]
    answer = await ask(client, messages=asked, tools=TOOLS)
    chunks = await stream(client, messages=asked, tools=TOOLS)
    found: dict[int, list[str]] = {}
    for chunk in chunks:
        for delta in chunk.choices[0].delta.tool_calls or ():
            entry = found.setdefault(delta.index, ["", "", ""])
            assert delta.function is not None
            for i, value in enumerate((delta.id, delta.function.name, delta.function.arguments)):
                entry[i] += value or ""
    calls = [call for call in answer.choices[0].message.tool_calls or () if call.type == "function"]
    assert list(found.values()) == [[call.id, call.function.name, call.function.arguments] for call in calls]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


# --- JSON ---


class Address(BaseModel):
    street: str
    kind: Literal["home", "work"]


class Person(BaseModel):
    name: str
    age: int
    tags: list[str]
    address: Address | None
    friends: list[Person] = []


async def test_a_pydantic_model_is_parsed(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(model="sim", messages=HELLO, response_format=Person)
    assert isinstance(answer.choices[0].message.parsed, Person)


async def test_a_stream_of_json_is_parsed(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="sim", messages=HELLO, response_format=Person) as found:
        answer = await found.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Person)


async def test_a_json_object_is_one_and_says_simulated(client: AsyncOpenAI) -> None:
    answer = await ask(client, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content or "")["simulated"] is True


async def test_a_json_object_obeys_a_schema_in_the_messages(client: AsyncOpenAI) -> None:
    said = (
        f'Here is {{no JSON}}, an {{"example": 1}} and the schema: {json.dumps(Person.model_json_schema(), indent=2)}'
    )
    asked: Any = [{"role": "system", "content": said}, *HELLO]
    answer = await ask(client, messages=asked, response_format={"type": "json_object"})
    assert Person.model_validate_json(answer.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"choice": ["Yes", "No"]}, "Yes|No"),
        ({"regex": r"\d{3}-[A-Z]{2}"}, r"\d{3}-[A-Z]{2}"),
        ({"grammar": 'root ::= "left" | "right"'}, "left|right"),
        ({"json": {"type": "boolean"}}, "true|false"),
        ({"json": '{"type": "boolean"}'}, "true|false"),
    ],
)
async def test_vllms_structured_outputs_are_obeyed(
    http: httpx.AsyncClient, outputs: dict[str, Any], pattern: str
) -> None:
    answer = await http.post("/v1/chat/completions", json={"messages": HELLO, "structured_outputs": outputs})
    assert answer.status_code == 200, answer.text
    assert re.fullmatch(pattern, answer.json()["choices"][0]["message"]["content"])
