"""Prompts and answers are bounded in bytes, whoever is slow."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.memory import Holding, Memory
from serve_app.dispatch.queue import CHUNK_BYTES
from serve_app.dispatch.rows import RenderedRow
from serve_app.dispatch.stream import Stream
from serve_app.schema import Chunk, Completion, HttpResponse
from tests.dispatch.kit import FAST, TEMPLATE, resized
from tests.dispatch.told import Told, until
from tests.fakes import FakePool

KIB, MIB = 1 << 10, 1 << 20


class Wordy(FakePool):
    """Answers of `answer_bytes`; with `path` chunks as a response, else as text."""

    answer_bytes = 0

    def _answer(self, prompt: bytes, chunk: Chunk) -> Completion:
        answer = bytes(self.answer_bytes)
        if chunk.path:
            return Completion(response=HttpResponse(200, "", answer))
        return Completion(text=answer.decode())


def rows(count: int, size: int, first: int = 0) -> list[RenderedRow[int]]:
    return [RenderedRow(i, i.to_bytes(4) + bytes(size - 4)) for i in range(first, first + count)]


@pytest.fixture
async def dispatcher() -> AsyncIterator[Dispatcher]:
    async with Dispatcher(Wordy([]), resized(FAST, memory_bytes=8 * MIB, replica_wait_s=60)) as dispatcher:
        yield dispatcher


async def fill(stream: Stream[int], size: int, count: int = 1) -> int:
    """Bytes that it takes in puts of `count` rows before it waits."""
    taken = 0
    try:
        while True:
            async with asyncio.timeout(0.05):
                await stream.put(rows(count, size))
            taken += count * size
    except TimeoutError:
        return taken


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-300, 400)), max_size=60))
def test_holders_that_ask_never_have_more_than_the_limit_but_for_what_each_took_empty_handed(
    asked: list[tuple[int, int]],
) -> None:
    memory = Memory(1000)
    holders = [Holding(memory) for _ in range(6)]
    for which, size in asked:
        holder = holders[which]
        first = not holder.held
        if size < 0:
            holder.change(-min(holder.held, -size))
        elif holder.may_take(size):
            holder.change(size)
            assert first or memory.held <= memory.limit
            assert first or holder.held <= memory.limit / 2
    assert memory.held == sum(holder.held for holder in holders)
    for holder in holders:
        holder.close()
        holder.change(500)
    assert memory.held == 0


async def test_a_stream_alone_gets_half_of_the_memory_and_others_the_same_share_of_the_rest(
    dispatcher: Dispatcher,
) -> None:
    shares = [await fill(dispatcher.stream(TEMPLATE), 64 * KIB) for _ in range(4)]
    assert shares == [4 * MIB, 2 * MIB, 1 * MIB, 512 * KIB]


async def test_a_row_larger_than_the_memory_passes_alone(dispatcher: Dispatcher) -> None:
    stream = dispatcher.stream(TEMPLATE)
    assert await fill(stream, 9 * MIB) == 9 * MIB
    dispatcher._pool.names = ["a"]  # type: ignore[attr-defined]
    await stream.put(rows(1, 9 * MIB, first=1), last=True)
    assert [result.key async for some in stream for result in some] == [0, 1]


async def test_a_closed_stream_gives_its_memory_back_and_wakes_whoever_waits(dispatcher: Dispatcher) -> None:
    first, second = dispatcher.stream(TEMPLATE), dispatcher.stream(TEMPLATE)
    await fill(first, 64 * KIB)
    await fill(second, 64 * KIB)
    waiting = asyncio.create_task(second.put(rows(8, 64 * KIB)))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    first.close()
    await asyncio.wait_for(waiting, 5)
    second.close()
    assert dispatcher.memory.held == 0


async def test_a_chunk_of_long_prompts_ends_early() -> None:
    pool = Wordy(["a"])
    async with Dispatcher(pool, resized(FAST, chunk_rows=64, window_rows=64, max_window_rows=64)) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put(rows(20, 1 * MIB), last=True)
        assert len([result async for some in stream for result in some]) == 20
    assert max(pool.sizes) == CHUNK_BYTES // MIB


@pytest.mark.parametrize("path", ["", "/v1/chat/completions"])
async def test_results_that_nobody_takes_stop_the_replicas_and_go_on_once_they_are_taken(path: str) -> None:
    pool = Wordy(["a", "b"])
    pool.answer_bytes = 64 * KIB
    sizes = resized(FAST, memory_bytes=8 * MIB)
    async with Dispatcher(pool, sizes) as dispatcher:
        stream = dispatcher.stream(Chunk(0, (), path=path))
        await stream.put(rows(1000, 16), last=True)
        held = -1
        while dispatcher.memory.held != held:
            held = dispatcher.memory.held
            await asyncio.sleep(0.05)
        # The replicas' first rows went before anybody knew how long answers are.
        assert 3 * MIB < held < 4 * MIB + 2 * sizes.window_rows * 65 * KIB
        keys = [result.key async for some in stream for result in some]
        stream.close()
        assert dispatcher.memory.held == 0
    assert sorted(keys) == list(range(1000))


async def test_a_straggler_holds_the_prompts_of_its_whole_chunk() -> None:
    pool, size = Told(["a"]), 64 * KIB
    async with Dispatcher(pool, resized(FAST, max_window_rows=8)) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        asked = rows(40, size)
        await stream.put(asked, last=True)
        straggler = asked[0].prompt
        await until(lambda: len(pool.answered) == 39, pool, held=[straggler])
        await until(lambda: stream.prompts.held == FAST.chunk_rows * size)
        await until(lambda: not pool.open_calls, pool)
        await until(lambda: stream.prompts.held == 0)


@settings(deadline=None, max_examples=40)
@given(
    memory_bytes=st.integers(1, 4000),
    prompt_bytes=st.integers(4, 900),
    answer_bytes=st.integers(0, 900),
    put_rows=st.integers(1, 30),
    faults=st.dictionaries(st.sampled_from(["a", "b"]), st.lists(st.booleans(), max_size=4)),
)
def test_every_row_passes_however_little_memory_there_is(
    memory_bytes: int, prompt_bytes: int, answer_bytes: int, put_rows: int, faults: dict[str, list[bool]]
) -> None:
    async def run() -> None:
        pool = Wordy(["a", "b"], faults=faults)
        pool.answer_bytes = answer_bytes
        async with Dispatcher(pool, resized(FAST, memory_bytes=memory_bytes, replica_wait_s=5)) as dispatcher:
            streams = [dispatcher.stream(TEMPLATE) for _ in range(2)]

            async def feed(stream: Stream[int]) -> None:
                for first in range(0, 60, put_rows):
                    await stream.put(rows(min(put_rows, 60 - first), prompt_bytes, first))
                stream.finish()

            async def read(stream: Stream[int]) -> list[int]:
                keys = []
                async for some in stream:
                    await asyncio.sleep(0)
                    keys += [result.key for result in some]
                return keys

            async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                reading = [tasks.create_task(read(stream)) for stream in streams]
                for stream in streams:
                    tasks.create_task(feed(stream))
            assert [sorted(keys.result()) for keys in reading] == [list(range(60))] * 2
            await asyncio.sleep(0.001)  # the last calls end
            assert dispatcher.memory.held == 0

    asyncio.run(run())
