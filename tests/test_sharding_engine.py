"""A long list of prompts through two real replicas. Both must be alive: the last tests of test_cluster end them."""

from __future__ import annotations

import pytest
from openai import OpenAI

from tests.conftest import Cluster

MODEL = "smollm2-135m-instruct"
# Two steps of bf16, as in tests/test_cluster.py: the two calls are batched differently.
WORST_DIFFERENCE = 0.25


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_hundred_prompts_in_one_call_are_answered_by_both_replicas_as_one_by_one(cluster: Cluster) -> None:
    client = OpenAI(base_url=f"{cluster.base_url}/v1", api_key="none", max_retries=0, timeout=300)
    # Continuations that the model is sure of, so that rounding cannot make another token the likeliest.
    prompts = [", ".join(str(i + k) for k in range(5)) + "," for i in range(100, 200)]
    ask = {"model": MODEL, "max_tokens": 4, "temperature": 0, "logprobs": 2, "seed": 7}

    raw = client.completions.with_raw_response.create(prompt=prompts, **ask)
    answer = raw.parse()
    assert raw.headers["x-serve-app-replicas"] == "2"
    assert [choice.index for choice in answer.choices] == list(range(100))

    alone = [client.completions.create(prompt=prompt, **ask) for prompt in prompts]
    singles = [single.choices[0] for single in alone]
    assert [choice.logprobs.tokens for choice in answer.choices] == [single.logprobs.tokens for single in singles]
    assert [choice.text for choice in answer.choices] == [single.text for single in singles]
    differences = [
        abs(one - other)
        for choice, single in zip(answer.choices, singles, strict=True)
        for one, other in zip(choice.logprobs.token_logprobs, single.logprobs.token_logprobs, strict=True)
    ]
    print(f"log-probabilities of {len(differences)} tokens: largest difference {max(differences):.4f}")
    assert max(differences) < WORST_DIFFERENCE
    assert answer.usage.prompt_tokens == sum(single.usage.prompt_tokens for single in alone)
    assert answer.usage.completion_tokens == sum(single.usage.completion_tokens for single in alone)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
