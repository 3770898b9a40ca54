"""An application developer: a stock OpenAI client, files and batches."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.journeys.kit import Person

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Forecast(BaseModel):
    """What an answer is to be parsed as."""

    city: str
    degrees: int


def journey(person: Person) -> None:
    """On a running server."""
    client = OpenAI(base_url=f"{person.base_url}/v1", api_key="none", max_retries=0, timeout=60)
    model = client.models.list().data[0].id
    hello: Any = [{"role": "user", "content": "Say hello."}]
    with person.step("chats"):
        answer = client.chat.completions.create(model=model, messages=hello, max_tokens=8)
        assert answer.choices[0].message.content
        assert answer.usage
        assert answer.usage.completion_tokens <= 8
    with person.step("streams"):
        stream = client.chat.completions.create(
            model=model, messages=hello, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].usage
    with person.step("has a tool called"):
        called = client.chat.completions.create(
            model=model, messages=hello, tools=[WEATHER], tool_choice="required", max_tokens=200
        )
        (call,) = called.choices[0].message.tool_calls[:1]
        assert call.function.name == "get_weather"
        assert set(json.loads(call.function.arguments)) == {"city"}
    with person.step("gets an object by its schema"):
        parsed = client.chat.completions.parse(
            model=model,
            messages=hello,
            response_format=Forecast,
            max_tokens=400,
        )
        assert isinstance(parsed.choices[0].message.parsed, Forecast)
    with person.step("gets embeddings"):
        vectors = client.embeddings.create(model=model, input=["a", "b"]).data
        assert [math.hypot(*vector.embedding) for vector in vectors] == pytest.approx([1, 1], abs=1e-3)
    with person.step("names a model that is not there"):
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(model="gpt-9", messages=hello)
        assert raised.value.code == "model_not_found"
    with person.step("runs a batch"):
        lines = [
            {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions",
             "body": {"model": model, "messages": hello, "max_tokens": 4}}
            for i in range(20)
        ]  # fmt: skip
        data = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("requests.jsonl", data), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        deadline = time.monotonic() + 120
        while batch.status not in ("completed", "failed", "expired", "cancelled"):
            assert time.monotonic() < deadline, batch.status
            time.sleep(0.5)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed", batch.errors
        assert batch.output_file_id
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert sorted(one["custom_id"] for one in answers) == sorted(f"r{i}" for i in range(20))
