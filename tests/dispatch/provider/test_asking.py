"""Timing is tested on an event loop whose clock jumps over every wait, sockets on a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch.provider.pool import ProviderPool
from serve_app.errors import BadSettings
from serve_app.schema import Completion, Sampling
from serve_app.spec import Provider
from tests.dispatch.provider.fakes import FakeProvider, Reply, a_pool, answer, ask, chat, plain, run, virtually

pytestmark = pytest.mark.timeout(60)


def test_a_chat_is_asked_with_openais_names_of_the_sampling() -> None:
    app = FakeProvider()
    sampling = Sampling(99, 0.5, 0.9, 3, ("END",), {"json": {"type": "object"}})
    (completion,) = ask(app, chat("hello"), sampling=sampling)
    assert (completion.status, completion.text, completion.finish_reason) == ("ok", "HELLO", "stop")
    assert app.asked[0].path == "/v1/chat/completions"
    assert app.asked[0].body == {
        "model": "gpt-test",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 99,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }


def test_plain_text_is_asked_as_a_completion() -> None:
    app = FakeProvider(Reply(content={"choices": [{"text": " there", "finish_reason": "length"}]}))
    (completion,) = ask(app, plain("hello"))
    assert (completion.text, completion.finish_reason) == (" there", "length")
    assert app.asked[0].path == "/v1/completions"
    assert app.asked[0].body["prompt"] == "hello"


def test_tokens_are_counted_as_the_provider_says() -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 32}}
    (completion,) = ask(FakeProvider(Reply(content=answer() | {"usage": usage})), chat("hello"))
    assert (completion.prompt_tokens, completion.cached_tokens, completion.completion_tokens) == (40, 32, 2)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=12), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_answers_keep_the_prompts_order_and_no_more_requests_are_open_than_allowed(
    delays: list[float], concurrency: int
) -> None:
    app = FakeProvider(default=lambda asked: Reply(content=answer(asked.what), after_s=delays[int(asked.what)]))
    pool = a_pool(app, concurrency=concurrency)

    async def in_two_chunks() -> list[Completion]:
        prompts = [chat(str(i)) for i in range(len(delays))]
        half = len(delays) // 2
        first, second = await asyncio.gather(run(pool, *prompts[:half]), run(pool, *prompts[half:]))
        return [*first, *second]

    completions = virtually(in_two_chunks())
    assert [completion.text for completion in completions] == [str(i) for i in range(len(delays))]
    assert app.most_open <= concurrency
    assert app.most_open == min(concurrency, len(delays)) or 0 in delays


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (answer(None, message={"content": None, "refusal": "I will not"}), "the model refused: I will not"),
        (answer(None, finish_reason="length"), "no text; it ended by 'length'"),
        ({"choices": "none"}, "not as OpenAI's API has it"),
    ],
)
def test_an_answer_without_text_is_invalid_and_asked_once(content: dict[str, Any], why: str) -> None:
    app = FakeProvider(default=lambda _: Reply(content=content))
    (completion,) = ask(app, chat("hello"))
    assert (completion.status, completion.text) == ("invalid", None)
    assert why in (completion.error or "")
    assert len(app.asked) == 1


@pytest.mark.parametrize("structured", [{"choice": ["a", "b"]}, {"regex": "a+"}, {"grammar": "root ::= 'a'"}])
def test_structured_output_that_openai_cannot_express_is_never_asked(structured: dict[str, Any]) -> None:
    app = FakeProvider()
    (completion,) = ask(app, chat("hello"), sampling=Sampling(structured=structured))
    assert completion.status == "invalid"
    assert f"cannot be asked for {next(iter(structured))}" in (completion.error or "")
    assert not app.asked
    with pytest.raises(BadSettings, match="only for one json schema"):
        ProviderPool(Provider(base_url="http://h/v1", model="m"), sampling=Sampling(structured=structured))
