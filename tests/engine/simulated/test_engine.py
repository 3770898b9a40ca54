import json
import math
from typing import Any

import pytest

from serve_app.engine.simulated.engine import SimulatedEngine
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, Completion, Sampling, pack_tokens
from serve_app.settings import SimulatedSettings
from tests.fakes import in_order

FAST = SimulatedSettings(prefill_ms_per_token=0, step_ms=0)


async def run(engine: SimulatedEngine, chunk: Chunk) -> tuple[Completion, ...]:
    return in_order([completions async for completions in engine.run(chunk)])


async def test_answers_depend_on_the_prompt_alone_and_are_marked_simulated() -> None:
    chunk = Chunk(1, (pack_tokens([1, 2, 3]), pack_tokens([4, 5, 6])), label_ids=(7, 8))
    one, two = [await run(SimulatedEngine({}, FAST), chunk) for _ in range(2)]
    assert [c.label_logprobs for c in one] == [c.label_logprobs for c in two]
    assert one[0].label_logprobs != one[1].label_logprobs
    assert math.isclose(sum(math.exp(x) for x in one[0].label_logprobs), 0.9)
    info = SimulatedEngine({}, FAST).info
    assert info.simulated
    assert info.engine_version == "simulated"


async def test_texts_end_as_asked_and_json_obeys_its_schema() -> None:
    engine, prompts = SimulatedEngine({}, FAST), (pack_tokens([1]), pack_tokens([2]))
    texts = await run(engine, Chunk(1, prompts, sampling=Sampling(max_tokens=8)))
    assert [(one.completion_tokens, one.finish_reason) for one in texts] == [(8, "length")] * 2
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    found = await run(engine, Chunk(1, prompts, sampling=Sampling(max_tokens=200, structured={"json": schema})))
    for one in found:
        assert isinstance(json.loads(one.text or "")["age"], int)
        assert one.finish_reason == "stop"


async def test_equal_rows_have_equal_texts_and_seeds_matter_above_temperature_0() -> None:
    async def text(**sampling: Any) -> str | None:
        return (await run(SimulatedEngine({}, FAST), Chunk(1, (b"abcd",), sampling=Sampling(**sampling))))[0].text

    assert await text(seed=1) == await text(seed=2)
    assert await text(seed=1, temperature=1.0) == await text(seed=1, temperature=1.0)
    assert len({await text(max_tokens=99, seed=seed, temperature=1.0) for seed in (1, 2)}) == 2


@pytest.mark.parametrize("structured", [{"json": {"type": "?"}}, {"regex": "("}, {"choice": []}])
async def test_sampling_that_no_engine_would_take_makes_rows_invalid(structured: dict[str, Any]) -> None:
    chunk = Chunk(1, (pack_tokens([1]),), sampling=Sampling(structured=structured))
    (found,) = await run(SimulatedEngine({}, FAST), chunk)
    assert found.status == "invalid"
    assert found.error


async def test_each_token_takes_a_step() -> None:
    engine = SimulatedEngine({}, SimulatedSettings(step_ms=10, prefill_ms_per_token=0))
    (found,) = await run(engine, Chunk(1, (pack_tokens([1]),), sampling=Sampling(max_tokens=5)))
    assert found.latency_ms >= 50


async def test_a_short_answer_does_not_wait_for_a_long_one() -> None:
    engine = SimulatedEngine({}, SimulatedSettings(step_ms=1, prefill_ms_per_token=0))
    prompts = tuple(pack_tokens([i]) for i in range(20))
    came = [completions async for completions in engine.run(Chunk(1, prompts, sampling=Sampling(max_tokens=200)))]
    lengths = [{one.completion_tokens for one in completions.values()} for completions in came]
    assert len(lengths) > 1
    assert lengths == sorted(lengths, key=max)
    assert all(len(length) == 1 for length in lengths)
    assert {place for completions in came for place in completions} == set(range(20))


async def test_a_shared_prefix_is_cached_in_whole_blocks() -> None:
    engine = SimulatedEngine({}, FAST)
    shared = tuple(range(70))
    first, second = await run(engine, Chunk(1, (pack_tokens((*shared, 1)), pack_tokens((*shared, 2)))))
    assert (first.cached_tokens, second.cached_tokens) == (0, 64)


async def test_a_scripted_fault_loses_the_engine() -> None:
    engine = SimulatedEngine({}, SimulatedSettings(step_ms=0, fail_after_chunks=1))
    await run(engine, Chunk(1, (pack_tokens([1]),)))
    for _ in range(2):
        with pytest.raises(EngineFailed, match="as scripted"):
            await run(engine, Chunk(2, (pack_tokens([1]),)))
    with pytest.raises(EngineFailed):
        await engine.check_health()
