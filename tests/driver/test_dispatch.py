import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.driver.dispatch import Dispatcher, DispatchSettings, RowResult
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, ChunkResult, ReplicaInfo, Sampling, pack_tokens
from tests.fakes import FakePool, replica

FAST = DispatchSettings(
    chunk_rows=4, min_chunk_rows=1, window_rows=8, max_window_rows=16, max_attempts=6, refresh_s=0.001,
    replica_wait_s=0.2,
)  # fmt: skip
TEMPLATE = Chunk(0, ())


async def dispatch(
    pool: FakePool,
    prompts: Sequence[bytes],
    sizes: DispatchSettings = FAST,
    limit: Callable[[int], int] = lambda available: available,
) -> list[RowResult]:
    async with Dispatcher(pool, sizes) as dispatcher:
        stream = dispatcher.stream(TEMPLATE, limit=limit)
        await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts))
        stream.finish()
        results = [result async for some in stream for result in some]
        stream.close()
        return results


def prompts(count: int) -> list[bytes]:
    return [pack_tokens([1, 2, i]) for i in range(count)]


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 60),
    faults=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(st.booleans(), max_size=6)),
    chunk_rows=st.integers(1, 20),
    put_rows=st.integers(1, 60),
)
def test_every_row_is_reported_once_whatever_replicas_lose(
    count: int, faults: dict[str, list[bool]], chunk_rows: int, put_rows: int
) -> None:
    async def run() -> list[RowResult]:
        sizes = DispatchSettings(
            chunk_rows, 1, 2 * chunk_rows, max_attempts=50, refresh_s=0.0001, replica_wait_s=1, backlog_rows=put_rows
        )
        async with Dispatcher(FakePool(["a", "b", "c"], faults=faults), sizes) as dispatcher:
            stream = dispatcher.stream(TEMPLATE)
            items = [(i, prompt, 0) for i, prompt in enumerate(prompts(count))]

            async def feed() -> None:
                for start in range(0, count, put_rows):
                    await stream.put(items[start : start + put_rows])
                stream.finish()

            feeding = asyncio.create_task(feed())
            results = [result async for some in stream for result in some]
            await feeding
            return results

    results = asyncio.run(run())
    assert sorted(result.key for result in results) == list(range(count))
    assert all(r.completion.status == "ok" and r.completion.text == str([1, 2, r.key]) for r in results)


async def test_a_poisonous_row_fails_alone_and_says_who_lost_it() -> None:
    results = await dispatch(FakePool(["a", "b"], poison={prompts(6)[5]}), prompts(16))
    failed = [result for result in results if result.completion.status == "failed"]
    assert [result.key for result in failed] == [5]
    assert failed[0].attempts == FAST.max_attempts
    assert (failed[0].completion.error or "").count("died of poison") == FAST.max_attempts
    assert failed[0].completion.text is None


async def test_a_row_that_fails_by_itself_is_tried_again() -> None:
    results = await dispatch(FakePool(["a"], flaky={prompts(4)[3]: 2}), prompts(8))
    assert {result.key: result.attempts for result in results if result.attempts > 1} == {3: 3}
    assert all(result.completion.status == "ok" for result in results)


async def test_a_window_of_rows_is_open_to_each_replica_and_no_more() -> None:
    pool = FakePool(["a", "b"])
    pool.waiting = 100  # so the window does not grow
    await dispatch(pool, prompts(200))
    assert pool.most_open == FAST.window_rows
    assert set(pool.calls) == {"a", "b"}
    assert max(pool.sizes) == FAST.chunk_rows


async def test_a_window_grows_while_the_engine_waits_for_work_and_shrinks_when_work_waits_for_the_engine() -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.0001
    await dispatch(pool, prompts(400))
    assert pool.most_open == FAST.max_window_rows
    pool.most_open, pool.waiting = 0, 100
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts(400)))
        stream.finish()
        async for _ in stream:
            (worker,) = dispatcher.workers
    assert worker.window == FAST.chunk_rows


async def test_chunks_shrink_at_the_end_so_that_all_replicas_end_together() -> None:
    pool = FakePool(["a", "b"])
    await dispatch(pool, prompts(64))
    assert pool.sizes[0] == FAST.chunk_rows
    assert pool.sizes[-1] == FAST.min_chunk_rows


async def test_only_the_chosen_number_of_replicas_works() -> None:
    pool = FakePool(["a", "b", "c"])
    assert len(await dispatch(pool, prompts(50), limit=lambda available: 1)) == 50
    assert len(pool.calls) == 1


async def test_a_replica_that_joins_gets_work_and_one_that_leaves_gives_it_back() -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.002
    seen: list[int] = []
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts(400)))
        stream.finish()
        async for results in stream:
            seen += [result.key for result in results]
            if len(seen) >= 40 and pool.names == ["a"]:
                pool.names = ["a", "b"]
            if pool.calls["b"] >= 2 and "a" in pool.names:
                pool.names = ["b"]
    assert sorted(seen) == list(range(400))
    assert pool.calls["b"] > 2


async def test_a_replica_that_joins_works_within_a_second() -> None:
    pool = FakePool(["a"])
    pool.hold_s = 0.01
    async with Dispatcher(pool, DispatchSettings(chunk_rows=4, window_rows=4, max_window_rows=4)) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts(2000)))
        stream.finish()
        joined = 0.0
        async for _ in stream:
            if not joined:
                pool.names, joined = ["a", "b"], time.monotonic()
            if pool.calls["b"]:
                break
        assert time.monotonic() - joined < 1.0
        stream.close()


async def test_a_prefix_group_stays_on_a_replica_and_the_others_are_shared_out() -> None:
    pool = FakePool(["a", "b"])
    mixed = [pack_tokens([prefix] * 20 + [i]) for i in range(16) for prefix in (7, 3)]
    await dispatch(pool, mixed, resized(FAST, chunk_rows=2, window_rows=2, max_window_rows=2))
    whose: dict[bytes, set[str]] = {}
    for name, chunk in pool.served:
        for prompt in chunk.prompts:
            whose.setdefault(prompt[:4], set()).add(name)
    assert sorted(len(names) for names in whose.values())[0] == 1
    assert set.union(*whose.values()) == {"a", "b"}


def resized(sizes: DispatchSettings, **changed: int) -> DispatchSettings:
    from dataclasses import replace

    return replace(sizes, **changed)


async def test_long_answers_start_first() -> None:
    pool = FakePool(["a"])
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put((i, pack_tokens([i] * 9), i) for i in range(40))
        stream.finish()
        keys = [result.key async for some in stream for result in some]
    assert keys == sorted(keys, reverse=True)


async def test_without_a_replica_the_stream_fails_and_says_so() -> None:
    with pytest.raises(EngineFailed, match="no replica was ready"):
        await dispatch(FakePool([]), prompts(3))


async def test_whoever_asks_for_a_replica_gets_one_as_soon_as_it_is_there() -> None:
    pool = FakePool([])
    async with Dispatcher(pool, FAST) as dispatcher:
        asked = asyncio.create_task(dispatcher.replica())
        await asyncio.sleep(0.01)
        assert not asked.done()
        pool.names = ["a"]
        assert (await asyncio.wait_for(asked, 5)).replica_id == "a"


async def test_streams_of_one_kind_share_chunks_and_each_gets_its_own_rows() -> None:
    pool = FakePool([])
    async with Dispatcher(pool, FAST) as dispatcher:
        streams = [dispatcher.stream(TEMPLATE) for _ in range(8)]
        for number, stream in enumerate(streams):
            await stream.put([((number, i), pack_tokens([number, i]), 0) for i in range(3)])
            stream.finish()
        pool.names = ["a"]
        for number, stream in enumerate(streams):
            keys = [result.key async for some in stream for result in some]
            assert sorted(keys) == [(number, i) for i in range(3)]
    assert len(pool.sizes) < 24


async def test_the_lower_priority_goes_first() -> None:
    pool = FakePool([])
    async with Dispatcher(pool, resized(FAST, window_rows=4, max_window_rows=4)) as dispatcher:
        late = dispatcher.stream(msgspec.structs.replace(TEMPLATE, priority=10))
        early = dispatcher.stream(msgspec.structs.replace(TEMPLATE, priority=0))
        for stream in (late, early):
            await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts(12)))
            stream.finish()
        pool.names = ["a"]
        for stream in (early, late):
            assert len([result async for some in stream for result in some]) == 12
    assert [chunk.priority for _, chunk in pool.served] == sorted(chunk.priority for _, chunk in pool.served)


async def test_streams_of_one_priority_take_turns() -> None:
    pool = FakePool([])
    async with Dispatcher(pool, resized(FAST, window_rows=4, max_window_rows=4)) as dispatcher:
        kinds = [msgspec.structs.replace(TEMPLATE, sampling=Sampling(max_tokens=n)) for n in (1, 2)]
        streams = [dispatcher.stream(kind) for kind in kinds]
        for stream in streams:
            await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts(40)))
            stream.finish()
        pool.names = ["a"]
        for stream in streams:
            assert len([result async for some in stream for result in some]) == 40
    order = [chunk.sampling.max_tokens for _, chunk in pool.served]
    assert set(order[:2]) == {1, 2}


async def test_a_closed_stream_leaves_nothing_running_and_nothing_queued() -> None:
    pool = FakePool(["a"])
    pool.hold_s = 60
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts(40)))
        while not pool.open["a"]:
            await asyncio.sleep(0.001)
        stream.close()
        await asyncio.sleep(0.01)
        assert pool.open["a"] == 0
        pool.hold_s = 0
        other = dispatcher.stream(TEMPLATE)
        await other.put([("mine", prompts(1)[0], 0)])
        other.finish()
        assert [result.key async for some in other for result in some] == ["mine"]


async def test_a_pool_that_cannot_be_asked_keeps_its_replicas() -> None:
    class Mute(FakePool):
        asked = 0

        async def replicas(self) -> list[ReplicaInfo]:
            self.asked += 1
            if self.asked > 1:
                raise TimeoutError("no answer")
            return await super().replicas()

    assert len(await dispatch(Mute(["a"]), prompts(300))) == 300


async def test_a_call_cancelled_on_the_replica_is_a_failure_and_not_the_end() -> None:
    class Cancelling(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            self.calls["all"] += 1
            if self.calls["all"] <= 3:
                raise asyncio.CancelledError
            return await super().run(replica_id, chunk)

    results = await asyncio.wait_for(dispatch(Cancelling(["a"]), prompts(30)), 10)
    assert sorted(result.key for result in results) == list(range(30))


async def test_an_answer_of_the_wrong_length_is_a_failure_of_the_chunk() -> None:
    class Short(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            result = await super().run(replica_id, chunk)
            if self.calls[replica_id] == 1:
                return msgspec.structs.replace(result, completions=result.completions[1:])
            return result

    results = await asyncio.wait_for(dispatch(Short(["a"]), prompts(10)), 10)
    assert sorted(result.key for result in results) == list(range(10))
    assert {result.attempts for result in results} == {1, 2}


async def test_a_stream_never_mixes_models_and_says_so_when_its_own_is_gone() -> None:
    class Upgraded(FakePool):
        async def replicas(self) -> list[ReplicaInfo]:
            found = await super().replicas()
            return [_serving(one, "new") if one.replica_id == "b" else one for one in found]

    pool = Upgraded(["a", "b"])
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE, engine=(await dispatcher.replica()).engine)
        await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts(40)))
        stream.finish()
        assert len([result async for some in stream for result in some]) == 40
        assert set(pool.calls) == {"a"}
        stream.close()
        late = dispatcher.stream(TEMPLATE, engine=replica("a").engine)
        pool.names = ["b"]
        await late.put((i, prompt, 0) for i, prompt in enumerate(prompts(4000)))
        with pytest.raises(EngineFailed, match="serve 'new' now, and this began with 'fake'"):
            async for _ in late:
                pass


def _serving(info: ReplicaInfo, model: str) -> ReplicaInfo:
    return msgspec.structs.replace(info, engine=msgspec.structs.replace(info.engine, model=model))


async def test_a_sick_replica_does_not_keep_a_small_job_to_itself() -> None:
    pool = FakePool(["a", "b"], faults={"a": [True] * 1000})
    results = await dispatch(pool, prompts(20), resized(FAST, max_attempts=3), limit=lambda available: 1)
    assert all(result.completion.status == "ok" for result in results)
    assert pool.calls["b"] > 0


async def test_a_dispatcher_that_is_left_starts_nothing_more_and_tells_whoever_waits() -> None:
    pool = FakePool(["a"])
    pool.hold_s = 60
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put((i, prompt, 0) for i, prompt in enumerate(prompts(40)))
        while not pool.open["a"]:
            await asyncio.sleep(0.001)
    calls = len(pool.served)
    with pytest.raises(EngineFailed, match="closed"):
        async for _ in stream:
            pass
    assert len(pool.served) == calls


async def test_a_stream_that_opens_after_a_pause_learns_of_new_replicas_at_once() -> None:
    pool = FakePool(["a"])
    async with Dispatcher(pool, resized(FAST, refresh_s=30)) as dispatcher:
        first = dispatcher.stream(TEMPLATE)
        await first.put([(0, prompts(1)[0], 0)], last=True)
        assert len([result async for some in first for result in some]) == 1
        first.close()
        dispatcher._idle = True  # as after refresh_s without a stream
        pool.names = ["a", "b"]
        second = dispatcher.stream(TEMPLATE)
        await asyncio.sleep(0.01)
        assert len(dispatcher.workers) == 2
        second.close()


async def test_a_pool_whose_call_was_cancelled_elsewhere_is_asked_again() -> None:
    class Shaken(FakePool):
        asked = 0

        async def replicas(self) -> list[ReplicaInfo]:
            self.asked += 1
            if self.asked == 1:
                raise asyncio.CancelledError
            return await super().replicas()

    assert len(await asyncio.wait_for(dispatch(Shaken(["a"]), prompts(30)), 10)) == 30
