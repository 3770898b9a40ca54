import asyncio

import pytest

from serve_app.client.replicas import ReplicaClient
from serve_app.dispatch.pool import DispatchSettings
from serve_app.errors import BadSettings
from serve_app.schema import Sampling, pack_tokens
from tests.fakes import FakePool

SETTINGS = DispatchSettings(chunk_rows=8, window_rows=16, max_window_rows=16, refresh_s=0.02, max_attempts=4)


def text_of(prompt: str) -> str:
    return str([ord(character) for character in prompt])


async def test_answers_come_in_the_order_of_the_prompts_whoever_gave_them() -> None:
    pool = FakePool(["a", "b"])
    async with ReplicaClient(pool, settings=SETTINGS) as client:
        prompts = [f"prompt {i}" for i in range(100)]
        answers = await client.generate(prompts, Sampling(max_tokens=4))
    assert [answer.text for answer in answers] == [text_of(prompt) for prompt in prompts]
    assert set(pool.calls) == {"a", "b"}
    assert {chunk.sampling.max_tokens for _, chunk in pool.served} == {4}


async def test_labels_are_scored_with_one_log_probability_each() -> None:
    async with ReplicaClient(FakePool(["a"]), settings=SETTINGS) as client:
        (answer,) = await client.score(["x"], ["True", "False"])
        assert answer.label_logprobs == (-1.0, -2.0)
        with pytest.raises(BadSettings, match="labels"):
            await client.score(["x"], ["True", "Tree"])


async def test_a_prompt_without_an_answer_is_a_value_and_takes_no_other_with_it() -> None:
    pool = FakePool(["a"], poison={pack_tokens([ord("b")])})
    async with ReplicaClient(pool, settings=SETTINGS) as client:
        good, bad = await client.generate(["a", "b"])
    assert (good.status, bad.status, bad.text) == ("ok", "failed", None)
    assert "poison" in (bad.error or "")


async def test_messages_and_text_may_be_mixed_and_nothing_gives_nothing() -> None:
    async with ReplicaClient(FakePool(["a"]), settings=SETTINGS) as client:
        assert await client.generate([]) == []
        answers = await client.generate(["hi", [{"role": "user", "content": "ho"}]])
    assert [answer.text for answer in answers] == [text_of("hi"), text_of("ho")]


async def test_hundreds_of_conversations_share_chunks() -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.005

    async def conversation(client: ReplicaClient, number: int) -> None:
        for turn in range(3):
            (answer,) = await client.generate([f"{number}-{turn}"])
            assert answer.text == text_of(f"{number}-{turn}")

    async with ReplicaClient(pool, settings=SETTINGS) as client:
        await asyncio.gather(*(conversation(client, number) for number in range(200)))
    assert sum(pool.sizes) == 600
    assert len(pool.sizes) < 300


async def test_a_cancelled_call_leaves_nothing_running() -> None:
    pool = FakePool(["a"])
    pool.hold_s = 60
    async with ReplicaClient(pool, settings=SETTINGS) as client:
        call = asyncio.create_task(client.generate(["x"] * 40))
        while not pool.open["a"]:
            await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.wait([call])
        await asyncio.sleep(0.01)
        assert pool.open["a"] == 0
