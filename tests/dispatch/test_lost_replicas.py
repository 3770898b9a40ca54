"""Rows under replicas that die: which is to blame, and that no other row pays."""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Collection, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch import membership
from serve_app.dispatch import worker as worker_module
from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.rows import RenderedRow, RowResult
from serve_app.dispatch.worker import Worker
from serve_app.errors import EngineFailed, ReplicaLost
from serve_app.schema import Chunk, Finished
from tests.dispatch.kit import FAST, TEMPLATE, dispatch, prompts, resized
from tests.fakes import FakePool, replica

REAL = DispatchSettings(refresh_s=0.002)


def failures(results: Sequence[RowResult[int]]) -> list[int]:
    """Keys of the rows that failed, where every row came out once."""
    assert sorted(result.key for result in results) == list(range(len(results)))
    return sorted(result.key for result in results if result.completion.status == "failed")


def poisonous(count: int, keys: Collection[int]) -> set[bytes]:
    return {prompts(count)[key] for key in keys}


class Watched(FakePool):
    """Notes, whenever a chunk comes, the sizes of the chunks on each replica, and what was sent to the dead."""

    def __init__(self, names: list[str], **script: Any) -> None:
        super().__init__(names, **script)
        self.boards: defaultdict[str, list[int]] = defaultdict(list)
        self.moments: list[dict[str, list[int]]] = []
        self.sent_to_the_dead = 0

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        size, board = len(chunk.prompts), self.boards[replica_id]
        self.sent_to_the_dead += replica_id in self.deaths
        board.append(size)
        if len(self.deaths) == 1:  # from here to the next one, a single row is a suspect
            self.moments.append({name: [*sizes] for name, sizes in self.boards.items() if sizes})
        try:
            async for finished in super().run(replica_id, chunk):
                yield finished
        finally:
            board.remove(size)


@pytest.mark.parametrize(
    ("keys", "chunk_rows", "hold_s", "poison_s"),
    [
        ([1000], 64, 0.002, math.inf),
        ([1000], 64, 0.01, 0.003),  # generation takes as long for one row as for 64
        ([10, 1000, 1990], 64, 0.002, math.inf),
        ([1000, 1001, 1002], 64, 0.002, 0.001),
        ([1000], 128, 0.002, math.inf),
        ([1000], 256, 0.002, 0.001),
    ],
)
async def test_a_row_that_ends_engines_takes_two_replicas_and_no_other_row_with_it(
    keys: list[int], chunk_rows: int, hold_s: float, poison_s: float
) -> None:
    pool = FakePool(["a", "b"], poison=poisonous(2000, keys))
    pool.hold_s, pool.poison_s = hold_s, poison_s
    sizes = resized(REAL, chunk_rows=chunk_rows, window_rows=3 * chunk_rows)
    assert failures(await dispatch(pool, prompts(2000), sizes)) == keys
    assert len(pool.deaths) == 2 if len(keys) == 1 else 2 < len(pool.deaths) <= 2 * len(keys)


@pytest.mark.parametrize("chunk_rows", [64, 128, 256])
async def test_a_row_that_fails_its_chunk_fails_alone_however_large_the_chunk(
    chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Choking(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
            async for finished in super().run(replica_id, chunk):
                if prompts(1001)[1000] in chunk.prompts:
                    raise RuntimeError("choked")
                yield finished

    monkeypatch.setattr(worker_module, "MAX_BACKOFF_S", 0.005)
    results = await dispatch(
        Choking(["a", "b"]), prompts(2000), resized(REAL, chunk_rows=chunk_rows, window_rows=3 * chunk_rows)
    )
    assert failures(results) == [1000]
    (error,) = [result.completion.error or "" for result in results if result.completion.error]
    assert error.count("choked") > REAL.max_attempts  # first with others, then as often alone


async def test_a_suspect_runs_alone_and_half_of_the_replicas_go_on_with_other_rows() -> None:
    pool = Watched(["a", "b", "c", "d"], poison=poisonous(4000, [3950]))
    pool.hold_s = 0.004
    sizes = resized(REAL, max_window_rows=192)
    async with Dispatcher(pool, sizes) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        rows = [RenderedRow(i, prompt) for i, prompt in enumerate(prompts(4000))]
        await stream.put(rows[-64:])  # the poison is in the first chunk
        await stream.put(rows[:-64], last=True)
        assert failures([result async for some in stream for result in some]) == [3950]
    trials = [moment for moment in pool.moments if any(1 in board for board in moment.values())]
    assert trials
    for moment in trials:
        assert [board for board in moment.values() if 1 in board] in ([[1]], [[1], [1]])
    others = [sum(sum(board) for board in moment.values() if 1 not in board) for moment in trials]
    # A trial may begin in the very turn of the loop in which the others have ended their chunks.
    assert all(max(pair) >= sizes.chunk_rows for pair in pairwise(others))
    assert any(board == [64, 64, 64] for moment in trials for board in moment.values())


async def test_a_lone_replica_that_is_left_runs_the_suspects_first_and_then_the_rest() -> None:
    pool = FakePool(["a"], poison=poisonous(400, [3]))
    assert failures(await dispatch(pool, prompts(400), FAST)) == [3]
    assert len(pool.deaths) == 2


async def test_suspects_go_into_chunks_again_once_the_guilty_one_is_convicted() -> None:
    pool = FakePool(["a", "b"], poison=poisonous(2000, [0]))  # the first suspect to run
    assert failures(await dispatch(pool, prompts(2000), REAL)) == [0]
    assert pool.sizes.count(1) < 10


async def test_a_row_that_ends_its_process_is_convicted_after_all_attempts() -> None:
    pool = FakePool(["a", "b"], poison=poisonous(200, [60]))
    pool.poison_error = ReplicaLost
    results = await dispatch(pool, prompts(200))
    assert failures(results) == [60]
    assert len(pool.deaths) == FAST.max_attempts
    (failed,) = [result for result in results if result.completion.error]
    assert failed.attempts == FAST.max_attempts
    assert (failed.completion.error or "").endswith("the row ends replicas")


@settings(deadline=None, max_examples=60)
@given(
    strikes=st.sets(st.integers(0, 80), min_size=5, max_size=40),
    count=st.integers(1, 80),
    chunk_rows=st.integers(1, 20),
)
def test_rows_under_killed_replicas_are_sent_again_and_never_fail(
    strikes: set[int], count: int, chunk_rows: int
) -> None:
    most = 4
    sent: Counter[bytes] = Counter()
    lost: Counter[bytes] = Counter()

    class Struck(FakePool):
        """The replica is killed at these calls, but not so often under a row that is alone that it must be that."""

        async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
            sent.update(chunk.prompts)
            if len(self.served) in strikes and (len(chunk.prompts) > 1 or lost[chunk.prompts[0]] < most - 1):
                self.die(replica_id, ReplicaLost("killed"))
            try:
                async for finished in super().run(replica_id, chunk):
                    yield finished
            except ReplicaLost:
                lost.update(chunk.prompts)
                raise

    sizes = DispatchSettings(
        chunk_rows=chunk_rows, min_chunk_rows=1, window_rows=2 * chunk_rows, max_attempts=most, refresh_s=0.0005,
        replica_wait_s=5,
    )  # fmt: skip
    results = asyncio.run(dispatch(Struck(["a", "b"]), prompts(count), sizes))
    assert failures(results) == []
    assert {result.key: result.attempts for result in results} == {
        key: sent[prompt] for key, prompt in enumerate(prompts(count))
    }


async def test_a_row_that_was_merely_on_board_reports_more_than_one_attempt() -> None:
    pool = FakePool(["a", "b"], faults={"a": [True]})
    attempts = Counter(result.attempts for result in await dispatch(pool, prompts(40)))
    assert set(attempts) == {1, 2}


async def test_lost_replicas_do_not_use_up_what_a_row_may_fail_by_itself() -> None:
    hard, hopeless = prompts(2)
    pool = FakePool(["a", "b"], faults={"a": [True], "b": [True]}, flaky={hard: 5, hopeless: 1000})
    results = {result.key: result for result in await dispatch(pool, prompts(12))}
    assert failures([*results.values()]) == [1]
    assert results[0].attempts > FAST.max_attempts  # 5 of its own, the lost ones and the answered one
    assert (results[1].completion.error or "").count("flaky") == FAST.max_attempts


async def test_a_dead_replica_that_stays_listed_gets_no_work() -> None:
    pool = Watched(["a", "b"], poison=poisonous(400, [70]))
    pool.corpse_s, pool.hold_s = 0.1, 0.001
    available: list[int] = []

    def limit(replicas: int) -> int:
        available.append(replicas)
        return replicas

    assert failures(await dispatch(pool, prompts(400), REAL, limit)) == [70]
    assert (len(pool.deaths), pool.sent_to_the_dead) == (2, 0)
    assert (min(available), max(available)) == (1, 2)


async def test_a_dead_replica_that_is_tried_again_convicts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "LOST_PAUSE_S", 0.01)
    pool = Watched(["a"], poison=poisonous(20, [7]))
    pool.corpse_s, pool.replace_s = 0.15, 0.1
    assert failures(await dispatch(pool, prompts(20), resized(FAST, replica_wait_s=5))) == [7]
    assert len(pool.deaths) == 2
    assert pool.sent_to_the_dead > 2


def test_a_lost_replica_is_tried_after_seconds_and_then_ever_more_rarely() -> None:
    worker = Worker(replica("a"), window=64.0, lost=True)
    for _ in range(8):
        worker.back_off(100.0, FAST)  # its open calls fail together
    tries: list[float] = []
    while len(tries) < 7:
        tries.append(worker.paused_until - 100.0)
        assert not worker.has_room(worker.paused_until - 0.1)
        assert worker.has_room(worker.paused_until)
        worker.back_off(worker.paused_until, FAST)
    assert tries == [5, 10, 20, 40, 80, 140, 200]


async def test_a_replica_that_was_lost_only_for_a_while_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
            if len(self.served) in (2, 3):
                self.served.append((replica_id, chunk))
                raise ReplicaLost("no connection")
            async for finished in super().run(replica_id, chunk):
                yield finished

    monkeypatch.setattr(worker_module, "LOST_PAUSE_S", 0.01)
    pool = Unreachable(["a"])
    assert failures(await dispatch(pool, prompts(60), resized(FAST, replica_wait_s=5))) == []


@pytest.mark.parametrize("pause_s", [60, 0.01])
async def test_where_all_replicas_are_dead_and_listed_the_stream_fails_and_no_row_does(
    pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "LOST_PAUSE_S", pause_s)
    pool = FakePool(["a", "b"], faults={"a": [True], "b": [True]})
    pool.corpse_s = pool.replace_s = 60
    with pytest.raises(EngineFailed, match="no replica was ready"):
        await dispatch(pool, prompts(30))


async def test_streams_that_share_chunks_with_a_poisonous_row_get_all_of_their_own() -> None:
    pool = FakePool(["a", "b"], poison=poisonous(40, [5]))
    async with Dispatcher(pool, FAST) as dispatcher:
        streams = [dispatcher.stream(TEMPLATE) for _ in range(2)]
        for number, stream in enumerate(streams):
            await stream.put(
                [RenderedRow(i, prompt) for i, prompt in enumerate(prompts(40)) if i % 2 == number], last=True
            )
        results = [result for stream in streams async for some in stream for result in some]
    assert failures(results) == [5]
    assert len(pool.deaths) == 2


async def test_a_closed_stream_takes_its_suspects_with_it() -> None:
    pool = FakePool(["a", "b"], poison=poisonous(40, [39]))
    pool.hold_s = 0.002
    async with Dispatcher(pool, FAST) as dispatcher:
        doomed, other = dispatcher.stream(TEMPLATE), dispatcher.stream(TEMPLATE)
        rows = [RenderedRow(i, prompt) for i, prompt in enumerate(prompts(40))]
        await doomed.put(rows[36:], last=True)
        await other.put(rows[:36], last=True)
        while not pool.deaths or 1 not in pool.sizes:
            await asyncio.sleep(0.0005)
        doomed.close()
        assert failures([result async for some in other for result in some]) == []
        assert not any(queue.rows or queue.suspects for queue in dispatcher._queues.values())
    assert len(pool.deaths) == 1


async def test_a_replica_that_leaves_with_open_rows_is_no_death_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "LEAVE_TIMEOUT_S", 0.02)
    pool = FakePool(["a"])
    pool.hold_s = 60
    async with Dispatcher(pool, FAST) as dispatcher:
        stream = dispatcher.stream(TEMPLATE)
        await stream.put([RenderedRow(i, prompt) for i, prompt in enumerate(prompts(8))], last=True)
        while not pool.open["a"]:
            await asyncio.sleep(0.001)
        pool.names, pool.hold_s = ["b"], 0
        results = [result async for some in stream for result in some]
    assert failures(results) == []
    assert {result.attempts for result in results} == {1}
    assert 1 not in pool.sizes
