"""Works side by side whose results are handed on as they come."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.engine import finishing
from serve_app.engine.finishing import as_finished


async def after(seconds: float, result: int = 0) -> int:
    await asyncio.sleep(seconds)
    if result < 0:
        raise ValueError(result)
    return result


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 20), max_size=30))
def test_every_result_comes_once_at_its_place(ticks: list[int]) -> None:
    async def run() -> list[dict[int, int]]:
        return [some async for some in as_finished([after(tick / 2000, tick) for tick in ticks])]

    came = [entry for some in asyncio.run(run()) for entry in some.items()]
    assert sorted(came) == list(enumerate(ticks))


async def test_what_finishes_in_one_moment_comes_together_and_at_once() -> None:
    async with asyncio.timeout(finishing.LEAST_S / 2):
        assert [some async for some in as_finished([after(0, i) for i in range(64)])] == [{i: i for i in range(64)}]


async def test_a_slow_one_holds_up_nobody() -> None:
    async with aclosing(as_finished([after(60), after(0, 7), after(0.001, 8)])) as results:
        assert await asyncio.wait_for(anext(results), 5) == {1: 7, 2: 8}


async def test_results_wait_for_others_a_share_of_their_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "SHARE", 0.5)
    works = [after(0.1), *(after(0.1 + i / 1000) for i in range(1, 40)), after(5)]
    async with aclosing(as_finished(works)) as results:
        assert len(await anext(results)) > 30


async def test_an_error_comes_after_what_was_done_before_it_and_ends_the_rest() -> None:
    done: list[str] = []

    async def long() -> int:
        try:
            return await after(60)
        finally:
            done.append("cancelled")

    results = as_finished([long(), after(0, -1), after(0, 5)])
    assert await anext(results) == {2: 5}
    with pytest.raises(ValueError, match="-1"):
        await anext(results)
    assert done == ["cancelled"]


async def test_leaving_early_waits_until_the_rest_is_cancelled() -> None:
    ended: list[int] = []

    async def long(number: int) -> int:
        try:
            return await after(60)
        finally:
            await asyncio.sleep(0.001)
            ended.append(number)

    async with aclosing(as_finished([long(0), long(1), after(0)])) as results:
        assert await anext(results) == {2: 0}
    assert sorted(ended) == [0, 1]
