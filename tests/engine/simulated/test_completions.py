from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types import Completion

from serve_app.engine.simulated.tokens import encode


async def ask(client: AsyncOpenAI, **fields: Any) -> Completion:
    raw = await client.completions.with_raw_response.create(**{"model": "sim", "prompt": "The sky is", **fields})
    found = json.loads(raw.content)
    if not fields.get("echo"):  # the type has no null for a first token's log-probability, as OpenAI gives it
        Completion.model_validate(found)
    return raw.parse()


async def stream(client: AsyncOpenAI, **fields: Any) -> list[Completion]:
    asked = {"model": "sim", "prompt": "The sky is", "stream": True, **fields}
    return [chunk async for chunk in await client.completions.create(**asked)]


async def test_sixteen_tokens_unless_asked(client: AsyncOpenAI) -> None:
    answer = await ask(client)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")
    assert answer.system_fingerprint == "simulated"


async def test_each_prompt_of_a_list_has_n_choices_in_order(client: AsyncOpenAI) -> None:
    alone = await ask(client, prompt="b", n=2)
    answer = await ask(client, prompt=["a", "b"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices[2:]] == [choice.text for choice in alone.choices]
    assert len({choice.text for choice in answer.choices}) == 4


async def test_tokens_are_a_prompt_like_their_text(client: AsyncOpenAI) -> None:
    text = await ask(client, prompt="The sky is")
    tokens = encode("The sky is")
    for prompt in (tokens, [tokens]):
        assert (await ask(client, prompt=prompt)).choices[0].text == text.choices[0].text


@pytest.mark.parametrize("fields", [{}, {"echo": True}, {"n": 2}, {"logprobs": 2}, {"echo": True, "logprobs": 1}])
async def test_a_stream_says_what_the_whole_answer_says(client: AsyncOpenAI, fields: dict[str, Any]) -> None:
    answer = await ask(client, **fields)
    chunks = await stream(client, stream_options={"include_usage": True}, **fields)
    *steps, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert answer.usage is not None
    assert last.usage.total_tokens == answer.usage.total_tokens
    for choice in answer.choices:
        of_it = [chunk.choices[0] for chunk in steps if chunk.choices[0].index == choice.index]
        assert "".join(one.text for one in of_it) == choice.text
        assert of_it[-1].finish_reason == choice.finish_reason
        if choice.logprobs is not None:
            found = [one.logprobs for one in of_it if one.logprobs is not None]
            assert [token for one in found for token in one.tokens or ()] == choice.logprobs.tokens


async def test_echo_puts_the_prompt_first_and_scores_it(client: AsyncOpenAI) -> None:
    answer = await ask(client, echo=True, max_tokens=0, logprobs=1)
    (choice,) = answer.choices
    assert choice.text == "The sky is"
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or ()) == "The sky is"
    first, *rest = choice.logprobs.token_logprobs or [None]
    assert first is None
    assert all(value < 0 for value in rest)


async def test_logprobs_have_the_offsets_of_their_tokens(client: AsyncOpenAI) -> None:
    (choice,) = (await ask(client, logprobs=3)).choices
    assert choice.logprobs is not None
    for token, offset in zip(choice.logprobs.tokens or (), choice.logprobs.text_offset or (), strict=True):
        assert choice.text.startswith(token, offset)
    for token, logprob, top in zip(
        choice.logprobs.tokens or (),
        choice.logprobs.token_logprobs or (),
        choice.logprobs.top_logprobs or (),
        strict=True,
    ):
        assert len(top) == 3
        assert top[token] == logprob == max(top.values())


async def test_a_repeated_prompt_is_cached_in_whole_blocks(client: AsyncOpenAI) -> None:
    cached = []
    for _ in range(2):
        answer = await ask(client, prompt="one two three four " * 20)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 96]


async def test_a_text_becomes_tokens_and_text_again(http: httpx.AsyncClient) -> None:
    text = "Grüße, 世界! \n\n🙂\0"
    answer = (await http.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert "".join(answer["token_strs"]) == text
    assert (await http.post("/detokenize", json={"tokens": answer["tokens"]})).json() == {"prompt": text}


async def test_a_chat_has_as_many_tokens_as_its_usage_says(http: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    counted = (await http.post("/tokenize", json={"messages": messages})).json()["count"]
    answer = (await http.post("/v1/chat/completions", json={"messages": messages})).json()
    assert answer["usage"]["prompt_tokens"] == counted
