"""The stock OpenAI SDK: responses, models, priorities, and the exceptions that it makes of our errors."""

from __future__ import annotations

from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError

from tests.contract.conftest import QUESTION

pytestmark = [pytest.mark.engine, pytest.mark.contract, pytest.mark.timeout(900)]


# --- responses ---


def test_a_response_has_output_text_and_usage(openai: Any, model: str) -> None:
    answer = openai.responses.create(
        model=model, input="What is the capital of France?", max_output_tokens=16, temperature=0
    )
    assert (answer.object, answer.model) == ("response", model)
    assert answer.status in ("completed", "incomplete")
    assert "Paris" in answer.output_text
    assert 0 < answer.usage.output_tokens <= 16


def test_a_streamed_response_sends_typed_events_that_end_with_the_whole(openai: Any, model: str) -> None:
    events = list(
        openai.responses.create(
            model=model, input="What is the capital of France?", max_output_tokens=16, temperature=0, stream=True
        )
    )
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    assert "Paris" in text


# --- models, priorities, errors ---


def test_models_are_listed_and_retrieved_by_name(openai: Any, model: str) -> None:
    (listed,) = openai.models.list().data
    retrieved = openai.models.retrieve(model)
    assert (listed.id, listed.object) == (model, "model")
    assert (retrieved.id, retrieved.object) == (model, "model")


def test_a_request_may_carry_a_priority_in_its_body_or_header(openai: Any, model: str) -> None:
    ask = {"model": model, "prompt": "1, 2, 3,", "max_tokens": 4, "temperature": 0}
    plain = openai.completions.create(**ask).choices[0].text
    assert openai.completions.create(**ask, extra_body={"priority": 5}).choices[0].text == plain
    assert openai.completions.create(**ask, extra_headers={"X-Vllm-Priority": "-5"}).choices[0].text == plain


def test_an_unknown_model_is_not_found(openai: Any) -> None:
    with pytest.raises(NotFoundError) as refused:
        openai.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert "no-such-model" in body_of(refused.value)["message"]
    with pytest.raises(NotFoundError) as refused:
        openai.models.retrieve("no-such-model")
    assert "no-such-model" in body_of(refused.value)["message"]


def test_a_prompt_that_is_too_long_is_a_bad_request_that_says_so(openai: Any, model: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 6000}])
    assert "maximum context length" in body_of(refused.value)["message"]


def test_a_generating_model_refuses_embeddings_in_openais_shape(openai: Any, model: str) -> None:
    with pytest.raises((NotFoundError, BadRequestError)) as refused:
        openai.embeddings.create(model=model, input="hello", encoding_format="float")
    assert body_of(refused.value)["message"]


def body_of(error: APIStatusError) -> dict[str, Any]:
    """What the SDK read out of the answer's `error` object; it would be the whole body without one."""
    body = error.body
    assert isinstance(body, dict)
    assert "error" not in body
    assert "detail" not in body
    return body
