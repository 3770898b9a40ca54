import math

import pytest

from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, pack_tokens
from serve_app.settings import SimulatedSettings

FAST = SimulatedSettings(prefill_ms_per_token=0, step_ms=0)


async def test_answers_depend_on_the_prompt_alone_and_are_marked_simulated() -> None:
    chunk = Chunk(1, (pack_tokens([1, 2, 3]), pack_tokens([4, 5, 6])), label_ids=(7, 8))
    one, two = [await SimulatedEngine({}, FAST).run(chunk) for _ in range(2)]
    assert [c.label_logprobs for c in one] == [c.label_logprobs for c in two]
    assert one[0].label_logprobs != one[1].label_logprobs
    assert math.isclose(sum(math.exp(x) for x in one[0].label_logprobs), 0.9)
    info = SimulatedEngine({}, FAST).info
    assert info.simulated
    assert info.engine_version == "simulated"


async def test_a_shared_prefix_is_cached_in_whole_blocks() -> None:
    engine = SimulatedEngine({}, FAST)
    shared = tuple(range(70))
    first, second = await engine.run(Chunk(1, (pack_tokens((*shared, 1)), pack_tokens((*shared, 2)))))
    assert (first.cached_tokens, second.cached_tokens) == (0, 64)


async def test_a_scripted_fault_loses_the_engine() -> None:
    engine = SimulatedEngine({}, SimulatedSettings(step_ms=0, fail_after_chunks=1))
    await engine.run(Chunk(1, (pack_tokens([1]),)))
    for _ in range(2):
        with pytest.raises(EngineFailed, match="as scripted"):
            await engine.run(Chunk(2, (pack_tokens([1]),)))
    with pytest.raises(EngineFailed):
        await engine.check_health()
