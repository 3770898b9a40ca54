"""One batch that two drivers follow, as in a rolling update: what one of them wrote, the other does not take back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from serve_app.driver.batches.record import BatchError, Record, change
from serve_app.driver.batches.run import decided, first
from serve_app.driver.store.store import JobStore, Store
from serve_app.errors import FileChanged, JobConflict, StoreError
from serve_app.storage.filesystem import Folder
from tests.driver.batches.kit import HttpPool, MakeDriver, many

Make = Callable[[Record], Record]
LATE: Any = {"errors": (BatchError("late", "late"),)}


@pytest.fixture(params=["disk", "s3"])
def job(request: pytest.FixtureRequest, tmp_path: Any) -> JobStore:
    url = str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3").format(tmp_path.name)
    return Store(url).create("batch-1", {"metadata": {}})


def in_between(job: JobStore, mine: Make, others: Make) -> Record:
    """Mine, with the other driver's between its look and its write."""
    turns: Iterator[Make] = iter([others])

    def make(record: Record) -> Record:
        changed = mine(record)
        if (other := next(turns, None)) is not None:
            change(job, other)
        return changed

    return change(job, make)


CANCELLING, ENDING = partial(first, cancelling_at=1), partial(decided, end="completed", errors=())
COMPLETED, CANCELLED = partial(first, completed_at=2, completed=5), partial(first, cancelled_at=3, completed=4)


@pytest.mark.parametrize(
    ("one", "other", "after"),
    [
        (partial(first, in_progress_at=1), CANCELLING, Record(in_progress_at=1, cancelling_at=1)),
        (partial(first, in_progress_at=1), partial(first, in_progress_at=9), Record(in_progress_at=9)),
        (COMPLETED, CANCELLED, Record(cancelled_at=3, completed=4)),
        (CANCELLED, COMPLETED, Record(completed_at=2, completed=5)),
        (partial(decided, end="failed", **LATE), ENDING, Record(end="completed")),
        (CANCELLING, COMPLETED, Record(completed_at=2, completed=5)),
        (CANCELLING, ENDING, Record(cancelling_at=1, end="completed")),
    ],
)
def test_the_first_to_write_is_the_first_to_be_heard(job: JobStore, one: Make, other: Make, after: Record) -> None:
    assert in_between(job, one, other) == after
    assert change(job, lambda record: record) == after


def test_a_record_that_is_replaced_all_the_time_is_an_error_and_not_a_loop(
    job: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*_: Any) -> None:
        raise FileChanged("by another")

    monkeypatch.setattr(Folder, "replace", changed)
    with pytest.raises(StoreError, match=r"others replace batch\.json"):
        change(job, CANCELLING)


async def test_a_cancel_by_the_other_driver_is_not_forgotten(make: MakeDriver) -> None:
    old = await make(HttpPool([]))
    batch_id = await old.create(*many(5))
    new = await make(HttpPool([]))
    await new.batches.recover()
    assert (await new.batches.cancel(batch_id))["status"] == "cancelling"
    await old.die()  # and whatever it wrote last
    assert (await new.ended(batch_id))["status"] == "cancelled"


async def test_what_one_driver_ended_the_other_neither_ends_nor_cancels(make: MakeDriver) -> None:
    old, new = await make(HttpPool(["a"])), await make(HttpPool([]))
    batch_id = await old.create(*many(5))
    await new.batches.recover()
    ended = await old.ended(batch_id)
    assert ended["status"] == "completed"
    with pytest.raises(JobConflict, match="is completed"):
        await new.batches.cancel(batch_id)
    while new.batches._runs:
        await asyncio.sleep(0.01)
    assert await new.batches.retrieve(batch_id) == ended


async def test_an_end_that_was_decided_is_the_end_whoever_writes_its_files(make: MakeDriver) -> None:
    dead = await make(HttpPool(["a"]))
    batch_id = await dead.create(*many(3))
    await dead.ended(batch_id)
    await dead.die()
    job = dead.jobs.job(batch_id.replace("_", "-", 1))
    record = msgspec.structs.replace(change(job, lambda r: r), completed_at=None, completed=0, output_file_id=None)
    change(job, lambda _: msgspec.structs.replace(record, cancelling_at=7))
    alive = await make(HttpPool(["a"]))
    await alive.batches.recover()
    batch = await alive.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 3)
