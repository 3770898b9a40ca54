"""The stock OpenAI SDK: structured output and tool calls, which hold whatever the model would rather say."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.contract.conftest import QUESTION

pytestmark = [pytest.mark.engine, pytest.mark.contract, pytest.mark.timeout(900)]


def tool(name: str, parameter: str, values: list[str]) -> dict[str, Any]:
    """A function of one parameter, which has one of the values."""
    schema = {
        "type": "object",
        "properties": {parameter: {"type": "string", "enum": values}},
        "required": [parameter],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}


WEATHER = tool("get_weather", "city", ["Paris", "Rome"])
TIME = tool("get_time", "zone", ["CET", "UTC"])


# --- structured output ---


class Fact(BaseModel):
    city: Literal["Paris", "Rome"]
    capital: bool


def test_a_pydantic_model_is_parsed_from_the_answer(openai: Any, model: str) -> None:
    answer = openai.chat.completions.parse(
        model=model, messages=QUESTION, response_format=Fact, max_tokens=64, temperature=0
    )
    fact = answer.choices[0].message.parsed
    assert isinstance(fact, Fact)
    assert json.loads(answer.choices[0].message.content) == fact.model_dump()


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": r"[A-Z]{3}-[0-9]{2}"}, r"[A-Z]{3}-[0-9]{2}"),
        ({"choice": ["certainly", "never"]}, r"certainly|never"),
        ({"grammar": 'root ::= "SELECT " column\ncolumn ::= "age" | "name"'}, r"SELECT (age|name)"),
    ],
    ids=["regex", "choice", "grammar"],
)
def test_a_structured_answer_follows_its_constraint(
    openai: Any, model: str, constraint: dict[str, Any], pattern: str
) -> None:
    ask = {"model": model, "max_tokens": 32, "extra_body": {"structured_outputs": constraint}}
    chat = openai.chat.completions.create(messages=QUESTION, **ask).choices[0].message.content
    text = openai.completions.create(prompt="Answer:", **ask).choices[0].text
    assert re.fullmatch(pattern, chat)
    assert re.fullmatch(pattern, text)


# --- tools ---


def test_a_named_tool_is_called_with_arguments_of_its_schema(openai: Any, model: str) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    answer = openai.chat.completions.create(
        model=model, messages=QUESTION, tools=[WEATHER, TIME], tool_choice=named, max_tokens=64, temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert call.id


def test_a_required_tool_call_calls_one_of_the_tools(openai: Any, model: str) -> None:
    answer = openai.chat.completions.create(
        model=model, messages=QUESTION, tools=[WEATHER, TIME], tool_choice="required", max_tokens=200, temperature=0
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    for call in calls:
        arguments = json.loads(call.function.arguments)
        allowed = {"get_weather": ("Paris", "Rome"), "get_time": ("CET", "UTC")}[call.function.name]
        assert set(arguments.values()) <= set(allowed)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_streamed_tool_call_comes_in_pieces_that_make_up_its_arguments(openai: Any, model: str) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    pieces = openai.chat.completions.create(
        model=model, messages=QUESTION, tools=[TIME], tool_choice=named, max_tokens=64, temperature=0, stream=True
    )
    deltas = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or []]
    assert deltas[0].function.name == "get_time"
    arguments = json.loads("".join(delta.function.arguments or "" for delta in deltas))
    assert arguments["zone"] in ("CET", "UTC")


def test_tools_may_be_left_to_the_model_and_their_results_given_back(openai: Any, model: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = openai.chat.completions.create(
        model=model, messages=messages, tools=[WEATHER], tool_choice="auto", max_tokens=8, temperature=0
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls
