import asyncio
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.rows import RenderedRow, RowResult
from serve_app.schema import pack_tokens
from tests.dispatch.kit import FAST, TEMPLATE, dispatch, prompts, resized
from tests.fakes import FakePool


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
    async def run() -> list[RowResult[int]]:
        sizes = DispatchSettings(
            chunk_rows=chunk_rows, min_chunk_rows=1, window_rows=2 * chunk_rows, max_attempts=50, refresh_s=0.0001,
            replica_wait_s=1, backlog_rows=put_rows,
        )  # fmt: skip
        async with Dispatcher(FakePool(["a", "b", "c"], faults=faults), sizes) as dispatcher:
            stream = dispatcher.stream(TEMPLATE)
            items = [RenderedRow(i, prompt) for i, prompt in enumerate(prompts(count))]

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
    (failed,) = [result for result in results if result.completion.status == "failed"]
    assert (failed.key, failed.attempts, failed.completion.text) == (5, 2, None)
    error = failed.completion.error or ""
    assert error.count("died of poison") == 2
    assert "it was alone on replica " in error
    assert error.endswith("the row ends an engine")


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
        await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(400)))
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
        await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(400)))
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
        await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts(2000)))
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


async def test_long_answers_start_first() -> None:
    pool = FakePool(["a"])
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put(RenderedRow(i, pack_tokens([i] * 9), i) for i in range(40))
        stream.finish()
        keys = [result.key async for some in stream for result in some]
    assert keys == sorted(keys, reverse=True)
