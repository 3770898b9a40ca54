import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch import membership
from serve_app.dispatch import worker as worker_module
from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings, RowResult
from serve_app.errors import EngineFailed, ReplicaLost
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


# --- replicas that die under their rows ---

REAL = DispatchSettings(refresh_s=0.002)


def failures(results: Sequence[RowResult]) -> list[int]:
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

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        size, board = len(chunk.prompts), self.boards[replica_id]
        self.sent_to_the_dead += replica_id in self.deaths
        board.append(size)
        if len(self.deaths) == 1:  # from here to the next one, a single row is a suspect
            self.moments.append({name: [*sizes] for name, sizes in self.boards.items() if sizes})
        try:
            return await super().run(replica_id, chunk)
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
        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            result = await super().run(replica_id, chunk)
            if prompts(1001)[1000] in chunk.prompts:
                raise RuntimeError("choked")
            return result

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
        rows = [(i, prompt, 0) for i, prompt in enumerate(prompts(4000))]
        await stream.put(rows[-64:])  # the poison is in the first chunk
        await stream.put(rows[:-64], last=True)
        assert failures([result async for some in stream for result in some]) == [3950]
    trials = [moment for moment in pool.moments if any(1 in board for board in moment.values())]
    assert trials
    for moment in trials:
        lone = [board for board in moment.values() if 1 in board]
        others = [board for board in moment.values() if 1 not in board]
        assert lone in ([[1]], [[1], [1]])
        assert sum(map(sum, others)) >= sizes.chunk_rows
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

        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            sent.update(chunk.prompts)
            if len(self.served) in strikes and (len(chunk.prompts) > 1 or lost[chunk.prompts[0]] < most - 1):
                self.die(replica_id, ReplicaLost("killed"))
            try:
                return await super().run(replica_id, chunk)
            except ReplicaLost:
                lost.update(chunk.prompts)
                raise

    sizes = DispatchSettings(chunk_rows, 1, 2 * chunk_rows, max_attempts=most, refresh_s=0.0005, replica_wait_s=5)
    results = asyncio.run(dispatch(Struck(["a", "b"]), prompts(count), sizes))
    assert failures(results) == []
    assert {result.key: result.attempts for result in results} == {
        key: sent[prompt] for key, prompt in enumerate(prompts(count))
    }


async def test_a_row_that_was_merely_on_board_reports_more_than_one_attempt() -> None:
    pool = FakePool(["a", "b"], faults={"a": [True], "b": [False, True]})
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


async def test_a_replica_that_was_lost_only_for_a_while_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(FakePool):
        async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
            if len(self.served) in (2, 3):
                self.served.append((replica_id, chunk))
                raise ReplicaLost("no connection")
            return await super().run(replica_id, chunk)

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
            await stream.put([(i, prompt, 0) for i, prompt in enumerate(prompts(40)) if i % 2 == number], last=True)
        results = [result for stream in streams async for some in stream for result in some]
    assert failures(results) == [5]
    assert len(pool.deaths) == 2


async def test_a_closed_stream_takes_its_suspects_with_it() -> None:
    pool = FakePool(["a", "b"], poison=poisonous(40, [39]))
    pool.hold_s = 0.002
    async with Dispatcher(pool, FAST) as dispatcher:
        doomed, other = dispatcher.stream(TEMPLATE), dispatcher.stream(TEMPLATE)
        rows = [(i, prompt, 0) for i, prompt in enumerate(prompts(40))]
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
        await stream.put([(i, prompt, 0) for i, prompt in enumerate(prompts(8))], last=True)
        while not pool.open["a"]:
            await asyncio.sleep(0.001)
        pool.names, pool.hold_s = ["b"], 0
        results = [result async for some in stream for result in some]
    assert failures(results) == []
    assert {result.attempts for result in results} == {1}
    assert 1 not in pool.sizes
