"""Batches whose driver died."""

import asyncio
import io
import json
from collections.abc import Callable

import pytest

from serve_app.driver.batches.record import BatchRequest, Record, change, job_id_of
from serve_app.driver.store.store import JobStore
from serve_app.errors import JobConflict
from tests.driver.batches.kit import CHAT, Clock, Driver, HttpPool, MakeDriver, ask, many


async def left_behind(make: MakeDriver, *sizes: int) -> tuple[Driver, list[str]]:
    """A driver that died amid the last of its batches of so many requests, and all their ids."""
    pool = HttpPool(["a"])
    pool.hold_s = 0.02
    dead = await make(pool)
    batch_ids = [await dead.create(*many(size)) for size in sizes]
    await dead.reaches(batch_ids[-1], 8)
    await dead.die()
    return dead, batch_ids


async def test_a_batch_whose_driver_died_goes_on_with_the_next_one_and_no_row_is_twice(make: MakeDriver) -> None:
    _, (batch_id,) = await left_behind(make, 80)
    alive = await make(HttpPool(["a"]))
    await asyncio.gather(alive.jobs.recover(), alive.batches.recover())
    batch = await alive.ended(batch_id)
    ids = [line["custom_id"] for line in alive.lines(batch["output_file_id"])]
    assert sorted(ids) == sorted(f"r{i}" for i in range(80))


async def test_a_batch_whose_job_nobody_took_up_goes_on(make: MakeDriver) -> None:
    _, (batch_id,) = await left_behind(make, 40)
    alive = await make(HttpPool(["a"]))
    await alive.batches.recover()  # and not its jobs, as after a store that was away for long
    batch = await alive.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 40)


async def test_one_batch_that_cannot_be_read_does_not_keep_the_others_from_going_on(make: MakeDriver) -> None:
    dead, (unreadable, batch_id) = await left_behind(make, 8, 40)
    dead.jobs.job(job_id_of(unreadable)).put("batch.json", b"{")
    alive = await make(HttpPool(["a"]))
    recovering = asyncio.ensure_future(alive.batches.recover())
    assert (await alive.ended(batch_id))["status"] == "completed"
    recovering.cancel()


async def test_the_input_of_a_batch_lasts_as_long_as_the_batch(make: MakeDriver, clock: Clock) -> None:
    driver = await make(HttpPool(["a"]))
    stored = driver.files.add(io.BytesIO(json.dumps(ask("1")).encode()), "in.jsonl", "batch", expires_after_s=3600)
    request = BatchRequest(input_file_id=stored.id, endpoint=CHAT, completion_window="24h")
    batch = await driver.batches.create(request)
    assert driver.files.get(stored.id).expires_at >= batch["expires_at"] > clock.now + 3600


async def test_a_driver_that_dies_while_it_writes_the_files_leaves_one_of_each(
    make: MakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def change_but_die_at_the_end(job: JobStore, make_record: Callable[[Record], Record]) -> Record:
        def made(record: Record) -> Record:
            if (changed := make_record(record)).ended:
                raise Killed
            return changed

        return change(job, made)

    dead = await make(HttpPool(["a"]))
    with monkeypatch.context() as patch:
        patch.setattr("serve_app.driver.batches.run.change", change_but_die_at_the_end)
        batch_id = await dead.create(*many(5), b"bad")
        while len(dead.files.page(purpose="batch_output")[0]) < 2:
            await asyncio.sleep(0.01)
        assert (await dead.batches.retrieve(batch_id))["output_file_id"] is None
        await dead.die()
    alive = await make(HttpPool(["a"]))
    await asyncio.gather(alive.jobs.recover(), alive.batches.recover())
    batch = await alive.ended(batch_id)
    assert batch["status"] == "completed"
    written = {file.id for file in alive.files.page(purpose="batch_output")[0]}
    assert written == {batch["output_file_id"], batch["error_file_id"]}


async def test_a_batch_that_was_cancelled_just_before_its_driver_died_is_cancelled_by_the_next(
    make: MakeDriver,
) -> None:
    dead = await make(HttpPool([]))
    batch_id = await dead.create(*many(5))
    await dead.batches.cancel(batch_id)
    await dead.die()
    pool = HttpPool(["a"])
    alive = await make(pool)
    await alive.batches.recover()
    batch = await alive.ended(batch_id)
    assert batch["status"] == "cancelled"
    assert await alive.jobs.recover() == []


async def test_a_driver_that_has_just_started_can_cancel_a_batch_that_it_has_not_come_to(make: MakeDriver) -> None:
    dead = await make(HttpPool([]))
    batch_id = await dead.create(*many(5))
    await dead.die()
    alive = await make(HttpPool(["a"]))
    assert (await alive.batches.cancel(batch_id))["status"] == "cancelling"
    assert (await alive.ended(batch_id))["status"] == "cancelled"


async def test_ended_batches_are_not_followed_again(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    batch = await driver.ended(await driver.create(*many(2)))
    await driver.die()
    alive = await make(HttpPool(["a"]))
    await alive.batches.recover()
    assert await alive.batches.retrieve(batch["id"]) == batch
    with pytest.raises(JobConflict, match="is completed"):
        await alive.batches.cancel(batch["id"])
