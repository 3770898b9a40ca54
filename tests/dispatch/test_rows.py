"""Rows of a chunk that come back one by one."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.rows import RenderedRow
from serve_app.errors import EngineFailed, ReplicaLost
from tests.dispatch.kit import FAST, TEMPLATE, prompts, resized
from tests.dispatch.told import Told, until

WHAT = st.sampled_from(["finish", "finish", "finish", "kill", "crash", "fail"])


@settings(deadline=None, max_examples=150)
@given(
    steps=st.lists(st.tuples(WHAT, st.integers(0, 99), st.integers(1, 8)), max_size=25),
    count=st.integers(1, 40),
    chunk_rows=st.integers(1, 9),
    closes=st.integers(0, 30),
)
def test_every_row_comes_once_however_rows_finish_replicas_die_calls_fail_and_streams_close(
    steps: list[tuple[str, int, int]], count: int, chunk_rows: int, closes: int
) -> None:
    sizes = DispatchSettings(
        chunk_rows=chunk_rows, min_chunk_rows=1, window_rows=2 * chunk_rows, max_attempts=100, refresh_s=0.0005,
        replica_wait_s=20,
    )  # fmt: skip

    async def run() -> None:
        pool = Told(["a", "b"])
        async with Dispatcher(pool, sizes) as dispatcher:
            stream, other = dispatcher.stream(TEMPLATE), dispatcher.stream(TEMPLATE)
            asked = prompts(2 * count)
            await stream.put([RenderedRow(i, asked[i]) for i in range(count)], last=True)
            await other.put([RenderedRow(i, asked[i]) for i in range(count, 2 * count)])
            for number, (what, which, rows) in enumerate(steps):
                if number == closes:
                    other.close()
                await asyncio.sleep(0.001)
                if what == "kill":
                    pool.kill(pool.names[which % 2], ReplicaLost("killed"))
                elif what == "crash":
                    pool.kill(pool.names[which % 2], EngineFailed("crashed"))
                elif live := [call for call in pool.open_calls if call.open and call.replica_id in pool.names]:
                    call = live[which % len(live)]
                    if what == "finish":
                        call.finish(call.open[which % len(call.open) :][:rows])
                    else:
                        call.told.put_nowait(RuntimeError("the call failed"))
                        call.open = []
            other.close()
            results = []

            async def read() -> None:
                results.extend([result async for some in stream for result in some])

            reading = asyncio.create_task(read())
            await until(reading.done, pool)
            await reading
        assert sorted(result.key for result in results) == list(range(count))
        failed = {asked[result.key] for result in results if result.completion.status != "ok"}
        assert failed <= pool.alone, "only a suspect that was alone when an engine died may be taken for the cause"
        assert {result.key: result.attempts for result in results} == {i: pool.sent[asked[i]] for i in range(count)}
        assert dispatcher.memory.held == 0 or dispatcher.memory.held == stream.prompts.held + stream.answers.held

    asyncio.run(run())


async def test_a_straggler_holds_its_own_place_in_the_window_and_no_other() -> None:
    pool = Told(["a"])
    slow = prompts(200)[::4][:6]  # more than one of each chunk that a window holds
    async with Dispatcher(pool, resized(FAST, max_window_rows=8)) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put([RenderedRow(i, prompt) for i, prompt in enumerate(prompts(200))], last=True)
        seen = 0
        reading = aiter(stream)
        while seen < 194:
            taking = asyncio.ensure_future(anext(reading))
            await until(taking.done, pool, held=slow)
            seen += len(taking.result())
            (worker,) = dispatcher.workers
            assert worker.open_rows <= worker.window == 8
        assert seen == 194
        stream.close()


async def test_results_are_there_before_their_chunk_is_done() -> None:
    pool = Told(["a"])
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put([RenderedRow(i, prompt) for i, prompt in enumerate(prompts(4))], last=True)
        await until(lambda: bool(pool.open_calls))
        (call,) = pool.open_calls
        call.finish([2])
        (first,) = await anext(aiter(stream))
        assert (first.key, first.attempts) == (2, 1)
        call.finish([0])
        await until(lambda: prompts(1)[0] in pool.answered)
        assert [result.key for result in stream.close()] == [0], "what nobody has taken is handed over at the end"
        await until(lambda: not pool.open_calls)


async def test_rows_that_came_before_their_engine_died_are_neither_sent_again_nor_suspects() -> None:
    pool = Told(["a"])
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put([RenderedRow(i, prompt) for i, prompt in enumerate(prompts(4))], last=True)
        await until(lambda: bool(pool.open_calls))
        pool.open_calls[0].finish([0, 3])
        pool.kill("a", EngineFailed("died"))
        await until(lambda: len(pool.open_calls) == 1 and pool.open_calls[0].replica_id == "a#2")
        assert len(pool.open_calls[0].chunk.prompts) == 1, "the two that were open are suspects: one runs alone"
        reading = asyncio.ensure_future(_attempts(stream))
        await until(reading.done, pool)
    assert reading.result() == {0: 1, 1: 2, 2: 2, 3: 1}


async def test_a_replica_that_dies_after_its_last_row_costs_no_row_an_attempt() -> None:
    pool = Told(["a", "b"])
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put([RenderedRow(i, prompt) for i, prompt in enumerate(prompts(4))], last=True)
        reading = asyncio.ensure_future(_attempts(stream))
        for name in ("a", "b"):
            await until(lambda name=name: any(call.replica_id == name for call in pool.open_calls))  # type: ignore[misc]
        for call in pool.open_calls:
            call.told.put_nowait([*range(len(call.chunk.prompts))])
            call.told.put_nowait(ReplicaLost("gone"))
        await until(reading.done)
        assert dispatcher.workers == []
    assert reading.result() == dict.fromkeys(range(4), 1)


async def _attempts(stream: object) -> dict[int, int]:
    return {result.key: result.attempts async for some in stream for result in some}  # type: ignore[attr-defined]
