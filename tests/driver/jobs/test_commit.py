"""When outcomes are committed, in what segments, and how many may wait for it."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from serve_app.dispatch.memory import Holding, Memory
from serve_app.driver.jobs import commit
from serve_app.driver.jobs.commit import Committer, outcome_bytes
from serve_app.driver.store.log import OutcomeLog
from serve_app.schema import Outcome
from tests.driver.kit import MakeJobs, finished, ids, spec
from tests.fakes import FakePool

MIB = 1 << 20


def outcome(number: int, value: dict[str, Any] | None = None) -> Outcome:
    return Outcome(
        custom_id=f"row-{number}",
        content_hash="0" * 32,
        status="ok",
        value=value or {"text": "", "finish_reason": "stop"},
        error=None,
        attempts=1,
        replica="a",
        model="m",
        engine_version="1",
        simulated=True,
        prompt_tokens=1,
        cached_tokens=0,
        completion_tokens=1,
        latency_ms=1.0,
        finished_at="2026-01-01T00:00:00.000+00:00",
    )


def long(number: int) -> Outcome:
    return outcome(number, {"text": "x" * MIB, "finish_reason": "stop"})


class Writer:
    """Segments that were written; waits for `opened`."""

    def __init__(self) -> None:
        self.segments: list[int] = []
        self.opened = threading.Event()

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        assert self.opened.wait(10)
        self.segments.append(len(outcomes))


async def test_short_outcomes_that_wait_together_become_one_segment_and_long_ones_several() -> None:
    writer, memory = Writer(), Memory(128 * MIB)
    writer.opened.set()
    committer = Committer(writer, Holding(memory), rows=100, seconds=60)
    await committer.put([outcome(i) for i in range(3000)])
    await committer.flush()
    assert writer.segments == [3000]
    await committer.put([long(i) for i in range(20)])
    assert memory.held > 20 * MIB
    await committer.flush()
    most = int(memory.limit * commit.SEGMENT_SHARE) // MIB
    assert writer.segments[1:] == [most, most, 20 - 2 * most]
    assert memory.held == 0


async def test_rows_that_come_one_by_one_while_a_segment_is_written_wait_for_each_other() -> None:
    loop, written = asyncio.get_running_loop(), asyncio.Event()
    segments: list[int] = []

    def write(outcomes: Sequence[Outcome]) -> None:
        segments.append(len(outcomes))
        loop.call_soon_threadsafe(committer.add, [outcome(1)])
        loop.call_soon_threadsafe(written.set)

    committer = Committer(write, Holding(Memory(128 * MIB)), rows=3, seconds=60)
    running = asyncio.create_task(committer.run())
    for expected in ([3], [3, 3], [3, 3, 3]):
        await committer.put([outcome(i) for i in range(3 if len(expected) == 1 else 2)])
        await asyncio.wait_for(written.wait(), 5)
        written.clear()
        await asyncio.sleep(0.05)
        assert segments == expected
    running.cancel()


@pytest.mark.parametrize("alone", [True, False])
async def test_whoever_brings_more_than_may_be_held_waits_until_it_is_written(alone: bool) -> None:
    writer, memory = Writer(), Memory(16 * MIB)
    other = Holding(memory)
    other.change(0 if alone else 12 * MIB)
    committer = Committer(writer, Holding(memory), rows=1000, seconds=60)
    running = asyncio.create_task(committer.run())
    brought = 0

    async def bring() -> None:
        nonlocal brought
        for number in range(40):
            await committer.put([long(number)])
            brought += 1

    bringing = asyncio.create_task(bring())
    await asyncio.sleep(0.2)
    assert brought == (7 if alone else 1)
    writer.opened.set()
    await asyncio.wait_for(bringing, 10)
    await committer.flush()
    running.cancel()
    assert sum(writer.segments) == 40
    assert memory.held == other.held


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"logprobs": {"Yes": -1.0}, "mass": 0.9}, 0),
        ({"status_code": 200, "request_id": "r", "body": msgspec.Raw(b'{"x": "' + bytes(b"y" * MIB) + b'"}')}, MIB),
        ({"status_code": 200, "request_id": "r", "body": {"x": "y" * MIB}}, MIB),
        ({"text": "ä" * MIB, "finish_reason": "stop"}, MIB),
        ({"text": "猫" * MIB, "finish_reason": "stop"}, 2 * MIB),
    ],
)
def test_an_outcome_counts_as_the_bytes_of_its_answer(value: dict[str, Any], size: int) -> None:
    assert size <= outcome_bytes(outcome(0, value)) < size + 200


async def test_a_cancelled_job_keeps_every_row_that_came_though_the_store_was_slow(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, append = threading.Event(), OutcomeLog.append

    def slow(self: OutcomeLog, outcomes: Sequence[Outcome], report: dict[str, Any]) -> None:
        assert opened.wait(20)
        append(self, outcomes, report)

    monkeypatch.setattr(OutcomeLog, "append", slow)
    pool = FakePool(["a"])
    jobs = await make_jobs(pool, commit_rows=1)
    job_id = await jobs.submit(spec(200))
    while sum(pool.sizes) < 200:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert (await jobs.status(job_id)).done == 0
    cancelling = asyncio.create_task(jobs.cancel(job_id))
    await asyncio.sleep(0.05)
    opened.set()
    await cancelling
    assert (await finished(jobs, job_id)).state == "cancelled"
    assert len(set(ids(jobs, job_id))) == 200
