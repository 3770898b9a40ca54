"""The stock OpenAI SDK: chats, completions, streams and log-probabilities from the replicas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.contract.conftest import QUESTION

pytestmark = [pytest.mark.engine, pytest.mark.contract, pytest.mark.timeout(900)]
# bf16 logits have steps of 0.125; the same prompt in another batch may differ by two of them.
LOGPROB_TOLERANCE = 0.25


# --- chat ---


def test_chat_answers_with_text_reason_and_usage(openai: Any, model: str) -> None:
    answer = openai.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, temperature=0)
    (choice,) = answer.choices
    assert (answer.object, answer.model, choice.index) == ("chat.completion", model, 0)
    assert choice.message.role == "assistant"
    assert "Paris" in choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 16


def test_streamed_chat_gives_the_same_text_in_pieces_and_usage_only_in_the_last(openai: Any, model: str) -> None:
    ask = {"model": model, "messages": QUESTION, "max_completion_tokens": 12, "temperature": 0}
    whole = openai.chat.completions.create(**ask)
    *pieces, last = openai.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert len(pieces) > 3
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(piece.usage is None for piece in pieces)
    assert {piece.id for piece in pieces} == {last.id}
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_without_stream_options_has_no_usage(openai: Any, model: str) -> None:
    pieces = list(openai.chat.completions.create(model=model, messages=QUESTION, max_tokens=4, stream=True))
    assert len(pieces) > 1
    assert all(piece.usage is None and piece.choices for piece in pieces)


def test_n_gives_as_many_numbered_answers(openai: Any, model: str) -> None:
    answer = openai.chat.completions.create(model=model, messages=QUESTION, n=3, max_tokens=8, temperature=1, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_the_answer_ends_before_a_stop_string(openai: Any, model: str) -> None:
    ask = {"model": model, "prompt": "1, 2, 3, 4,", "max_tokens": 16, "temperature": 0}
    assert "7" in openai.completions.create(**ask).choices[0].text
    (choice,) = openai.completions.create(**ask, stop=["7"]).choices
    assert choice.finish_reason == "stop"
    assert "6" in choice.text
    assert "7" not in choice.text


def test_one_seed_gives_one_text_whichever_replica_answers(openai: Any, model: str) -> None:
    # Short, so that no whole block is in a prefix cache: a cached prefix may be rounded otherwise.
    ask = {"model": model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 1}
    texts = {openai.completions.create(**ask, seed=7).choices[0].text for _ in range(12)}
    assert len(texts) == 1
    others = {openai.completions.create(**ask, seed=seed).choices[0].text for seed in (8, 9, 10)}
    assert others - texts


# --- log-probabilities ---


def test_chat_logprobs_name_the_likeliest_tokens_in_order(openai: Any, model: str) -> None:
    answer = openai.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        top = token.top_logprobs
        assert len(top) == 3
        assert all(one.logprob >= other.logprob for one, other in pairwise(top))
        assert (top[0].token, top[0].logprob) == (token.token, token.logprob)  # greedy
        assert token.logprob <= 0
        assert bytes(token.bytes).decode(errors="replace") == token.token
    assert "".join(token.token for token in content) == answer.choices[0].message.content


def test_logprob_token_ids_gives_exactly_those_tokens_and_the_values_that_top_logprobs_has(
    openai: Any, http: httpx.Client, model: str
) -> None:
    ids = [
        http.post("/tokenize", json={"model": model, "prompt": label, "add_special_tokens": False}).json()["tokens"]
        for label in (" Paris", " Rome")
    ]
    assert [len(tokens) for tokens in ids] == [1, 1]
    paris, rome = (f"token_id:{tokens[0]}" for tokens in ids)
    ask = {"model": model, "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}
    chosen = {"logprob_token_ids": [tokens[0] for tokens in ids], "return_tokens_as_token_ids": True}
    scored = openai.completions.create(**ask, logprobs=1, extra_body=chosen).choices[0].logprobs.top_logprobs[0]
    assert {paris, rome} <= set(scored)
    assert scored[paris] > scored[rome]
    assert math.exp(scored[paris]) + math.exp(scored[rome]) < 1
    top = openai.completions.create(**ask, logprobs=5, extra_body={"return_tokens_as_token_ids": True})
    likeliest = top.choices[0].logprobs.top_logprobs[0]
    assert likeliest[paris] == pytest.approx(scored[paris], abs=LOGPROB_TOLERANCE)


def test_echo_gives_the_prompt_back_with_its_logprobs(openai: Any, model: str) -> None:
    answer = openai.completions.create(
        model=model, prompt="The sky is", max_tokens=2, temperature=0, echo=True, logprobs=1
    )
    (choice,) = answer.choices
    assert choice.text.startswith("The sky is")
    assert choice.logprobs.token_logprobs[0] is None  # nothing comes before the first token
    assert len(choice.logprobs.tokens) == answer.usage.prompt_tokens + 2
