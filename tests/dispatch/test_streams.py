"""Streams beside each other, and replicas that are not as they should be."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec
import pytest

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.rows import RenderedRow
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, Finished, ReplicaInfo, Sampling, pack_tokens
from tests.dispatch.kit import FAST, TEMPLATE, dispatch, prompts, resized
from tests.fakes import FakePool, replica


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
            await stream.put([RenderedRow((number, i), pack_tokens([number, i])) for i in range(3)])
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
            await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(12)))
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
            await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(40)))
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
        await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(40)))
        while not pool.open["a"]:
            await asyncio.sleep(0.001)
        stream.close()
        await asyncio.sleep(0.01)
        assert pool.open["a"] == 0
        pool.hold_s = 0
        other = dispatcher.stream(TEMPLATE)
        await other.put([RenderedRow("mine", prompts(1)[0])])
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
        async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
            self.calls["all"] += 1
            if self.calls["all"] <= 3:
                raise asyncio.CancelledError
            async for finished in super().run(replica_id, chunk):
                yield finished

    results = await asyncio.wait_for(dispatch(Cancelling(["a"]), prompts(30)), 10)
    assert sorted(result.key for result in results) == list(range(30))


async def test_rows_that_a_chunk_leaves_without_an_answer_are_sent_again_and_no_others() -> None:
    class Short(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
            async for finished in super().run(replica_id, chunk):
                if self.calls[replica_id] == 1:
                    del finished.completions[0]
                yield finished

    results = await asyncio.wait_for(dispatch(Short(["a"]), prompts(10)), 10)
    assert sorted(result.key for result in results) == list(range(10))
    assert [result.key for result in results if result.attempts > 1] == [0]


async def test_a_stream_never_mixes_models_and_says_so_when_its_own_is_gone() -> None:
    class Upgraded(FakePool):
        async def replicas(self) -> list[ReplicaInfo]:
            found = await super().replicas()
            return [_serving(one, "new") if one.replica_id == "b" else one for one in found]

    pool = Upgraded(["a", "b"])
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE, engine=(await dispatcher.replica()).engine)
        await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(40)))
        stream.finish()
        assert len([result async for some in stream for result in some]) == 40
        assert set(pool.calls) == {"a"}
        stream.close()
        late = dispatcher.stream(TEMPLATE, engine=replica("a").engine)
        pool.names = ["b"]
        await late.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(4000)))
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
        await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(40)))
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
        await first.put([RenderedRow(0, prompts(1)[0])], last=True)
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
