import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.driver.dispatch import Dispatcher, DispatchSettings, RowResult
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, ChunkResult
from tests.fakes import FakePool

FAST = DispatchSettings(chunk_rows=4, chunks_in_flight=2, max_attempts=6, refresh_s=0.001, replica_wait_s=0.2)


async def dispatch(pool: FakePool, prompts: list[tuple[int, ...]], sizes: DispatchSettings = FAST) -> list[RowResult]:
    dispatcher = Dispatcher(pool, sizes, choose=lambda available: available)
    return [result async for results in dispatcher.run(prompts) for result in results]


def prompts(count: int) -> list[tuple[int, ...]]:
    return [(1, 2, i) for i in range(count)]


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 60),
    faults=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(st.booleans(), max_size=6)),
    chunk_rows=st.integers(1, 20),
)
def test_every_row_is_reported_once_whatever_replicas_lose(
    count: int, faults: dict[str, list[bool]], chunk_rows: int
) -> None:
    sizes = DispatchSettings(chunk_rows, 2, max_attempts=50, refresh_s=0.0001, replica_wait_s=1)
    results = asyncio.run(dispatch(FakePool(["a", "b", "c"], faults=faults), prompts(count), sizes))
    assert sorted(result.index for result in results) == list(range(count))
    assert all(r.completion.status == "ok" and r.completion.text == str((1, 2, r.index)) for r in results)


async def test_a_poisonous_row_fails_alone_and_says_who_lost_it() -> None:
    results = await dispatch(FakePool(["a", "b"], poison={(1, 2, 5)}), prompts(16))
    failed = [result for result in results if result.completion.status == "failed"]
    assert [result.index for result in failed] == [5]
    assert failed[0].attempts == FAST.max_attempts
    assert (failed[0].completion.error or "").count("died of poison") == FAST.max_attempts
    assert failed[0].completion.text is None


async def test_a_row_that_fails_by_itself_is_tried_again() -> None:
    results = await dispatch(FakePool(["a"], flaky={(1, 2, 3): 2}), prompts(8))
    assert {result.index: result.attempts for result in results if result.attempts > 1} == {3: 3}
    assert all(result.completion.status == "ok" for result in results)


async def test_a_window_of_chunks_is_open_to_each_replica_and_no_more() -> None:
    pool = FakePool(["a", "b"])
    await dispatch(pool, prompts(200))
    assert pool.most_open == FAST.chunks_in_flight
    assert set(pool.calls) == {"a", "b"}
    assert max(pool.sizes) == FAST.chunk_rows


async def test_only_the_chosen_number_of_replicas_works() -> None:
    pool = FakePool(["a", "b", "c"])
    dispatcher = Dispatcher(pool, FAST, choose=lambda available: 1)
    assert sum([len(results) async for results in dispatcher.run(prompts(50))]) == 50
    assert len(pool.calls) == 1


async def test_a_replica_that_joins_gets_work_and_one_that_leaves_gives_it_back() -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.002
    dispatcher = Dispatcher(pool, FAST, choose=lambda available: available)
    seen: list[int] = []
    async for results in dispatcher.run(prompts(400)):
        seen += [result.index for result in results]
        if len(seen) >= 40 and pool.names == ["a"]:
            pool.names = ["a", "b"]
        if pool.calls["b"] >= 2 and "a" in pool.names:
            pool.names = ["b"]
    assert sorted(seen) == list(range(400))
    assert pool.calls["b"] > 2


async def test_neighbouring_prefixes_travel_together() -> None:
    pool = FakePool(["a"])
    mixed: list[tuple[int, ...]] = [(prefix, i) for i in range(4) for prefix in (7, 3)]
    results = await dispatch(pool, mixed, DispatchSettings(4, 1, refresh_s=0.001))
    assert {mixed[result.index][0] for result in results[:4]} == {3}


async def test_without_a_replica_the_job_fails_and_says_so() -> None:
    with pytest.raises(EngineFailed, match="no replica was ready"):
        await dispatch(FakePool([]), prompts(3))


async def test_a_pool_that_cannot_be_asked_keeps_its_lanes() -> None:
    class Mute(FakePool):
        asked = 0

        async def replicas(self):  # type: ignore[no-untyped-def]
            self.asked += 1
            if self.asked > 1:
                raise TimeoutError("no answer")
            return await super().replicas()

    assert len(await dispatch(Mute(["a"]), prompts(300))) == 300


async def test_a_call_cancelled_on_the_replica_is_a_failure_and_not_the_end_of_the_lane() -> None:
    class Cancelling(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            self.calls["all"] += 1
            if self.calls["all"] <= 3:
                raise asyncio.CancelledError
            return await super().run(replica_id, chunk)

    results = await asyncio.wait_for(dispatch(Cancelling(["a"]), prompts(30)), 10)
    assert sorted(result.index for result in results) == list(range(30))


async def test_an_answer_of_the_wrong_length_is_a_failure_of_the_chunk() -> None:
    class Short(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            result = await super().run(replica_id, chunk)
            return replace(result, completions=result.completions[1:]) if self.calls[replica_id] == 1 else result

    results = await asyncio.wait_for(dispatch(Short(["a"]), prompts(10)), 10)
    assert sorted(result.index for result in results) == list(range(10))
    assert {result.attempts for result in results} == {1, 2}
