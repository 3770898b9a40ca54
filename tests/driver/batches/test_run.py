"""A batch through its states, to each of its ends."""

import asyncio
import json

import pytest

from serve_app.errors import JobConflict
from tests.driver.batches.kit import Clock, HttpPool, MakeDriver, ask, many


async def test_a_batch_passes_through_its_states_with_their_times(make: MakeDriver, clock: Clock) -> None:
    pool = HttpPool([])
    driver = await make(pool)
    batch_id = await driver.create(*many(30))
    first = await driver.batches.retrieve(batch_id)
    assert (first["status"], first["in_progress_at"]) == ("validating", None)
    while (batch := await driver.batches.retrieve(batch_id))["status"] == "validating":
        await asyncio.sleep(0.01)
    assert (batch["status"], batch["request_counts"]["total"]) == ("in_progress", 30)
    clock.now += 100
    pool.names = ["a"]
    batch = await driver.ended(batch_id)
    assert (batch["created_at"], batch["expires_at"]) == (1_800_000_000, 1_800_086_400)
    assert (batch["in_progress_at"], batch["finalizing_at"]) == (1_800_000_000, 1_800_000_100)
    assert batch["completed_at"] == 1_800_000_100
    assert batch["failed_at"] is batch["expired_at"] is batch["cancelled_at"] is batch["cancelling_at"] is None


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (b"", [("empty_file", None)]),
        (b"\n \n", [("empty_file", None)]),
        (b"custom_id,text\n1,hello\n", [("invalid_json_line", 1), ("invalid_json_line", 2)]),
        (json.dumps({**ask("a"), "url": "/v1/embeddings"}).encode(), [("url_mismatch", 1)]),
    ],
)
async def test_a_file_without_any_request_fails_its_batch_and_says_why_line_by_line(
    make: MakeDriver, content: bytes, errors: list[tuple[str, int | None]]
) -> None:
    driver = await make(HttpPool(["a"]))
    batch = await driver.ended(await driver.create(content))
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
    assert batch["failed_at"] is not None
    assert [(error["code"], error["line"]) for error in batch["errors"]["data"]] == errors
    assert all(error["message"] for error in batch["errors"]["data"])


async def test_a_cancelled_batch_keeps_what_is_done_and_lists_the_rest(make: MakeDriver) -> None:
    pool = HttpPool(["a"])
    pool.hold_s = 0.05
    driver = await make(pool)
    batch_id = await driver.create(*many(100), b"bad")
    await driver.reaches(batch_id, 8)
    cancelling = await driver.batches.cancel(batch_id)
    assert cancelling["status"] == "cancelling"
    assert (await driver.batches.cancel(batch_id))["cancelling_at"] == cancelling["cancelling_at"]
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["cancelled_at"]) == ("cancelled", batch["cancelling_at"])
    done = [line["custom_id"] for line in driver.lines(batch["output_file_id"])]
    lost = [(line["custom_id"], line["error"]["code"]) for line in driver.lines(batch["error_file_id"])]
    assert 8 <= len(done) < 100
    assert sorted([*done, *(name for name, _ in lost if name)]) == sorted(f"r{i}" for i in range(100))
    assert [code for name, code in lost if name is None] == ["invalid_json_line"]
    assert {code for name, code in lost if name} == {"batch_cancelled"}
    assert batch["request_counts"] == {"total": 101, "completed": len(done), "failed": len(lost)}
    with pytest.raises(JobConflict, match="is cancelled"):
        await driver.batches.cancel(batch_id)


async def test_a_batch_that_is_not_done_when_its_window_ends_expires_with_what_is_done(
    make: MakeDriver, clock: Clock
) -> None:
    pool = HttpPool(["a"])
    pool.hold_s = 0.05
    driver = await make(pool)
    batch_id = await driver.create(*many(100), completion_window="1h")
    await driver.reaches(batch_id, 8)
    pool.hold_s = 60
    clock.now += 3599
    await asyncio.sleep(0.1)
    assert (await driver.batches.retrieve(batch_id))["status"] == "in_progress"
    clock.now += 1
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["expired_at"]) == ("expired", batch["expires_at"])
    done = {line["custom_id"] for line in driver.lines(batch["output_file_id"])}
    lost = {line["custom_id"]: line["error"]["code"] for line in driver.lines(batch["error_file_id"])}
    assert set(lost.values()) == {"batch_expired"}
    assert done.isdisjoint(lost)
    assert done | set(lost) == {f"r{i}" for i in range(100)}


@pytest.mark.parametrize("end", ["cancelled", "expired"])
async def test_short_rows_beside_long_ones_are_kept_when_their_batch_ends_early(
    make: MakeDriver, clock: Clock, end: str
) -> None:
    driver = await make(HttpPool(["a"]), chunk_rows=25, window_rows=25, max_window_rows=25)
    rows = [ask(f"r{i}", wait_s=0 if i % 5 == 0 else 60) for i in range(25)]
    batch_id = await driver.create(*rows)
    await driver.reaches(batch_id, 5)
    if end == "cancelled":
        await driver.batches.cancel(batch_id)
    else:
        clock.now += 86_400
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == (end, 5)
    done = {line["custom_id"] for line in driver.lines(batch["output_file_id"])}
    assert done == {"r0", "r5", "r10", "r15", "r20"}


async def test_a_batch_expires_though_no_replica_ever_came(make: MakeDriver, clock: Clock) -> None:
    driver = await make(HttpPool([]))
    batch_id = await driver.create(*many(5))
    clock.now += 86_400
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["output_file_id"]) == ("expired", None)
    assert len(driver.lines(batch["error_file_id"])) == 5


async def test_a_job_that_finds_no_replica_in_time_is_taken_up_again_within_the_window(
    make: MakeDriver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = HttpPool([])
    driver = await make(pool, replica_wait_s=0.05)
    batch_id = await driver.create(*many(5))
    job_id = batch_id.replace("_", "-")
    while (await driver.jobs.status(job_id)).state != "failed":
        await asyncio.sleep(0.01)
    clock.now += 400  # past any pause
    pool.names = ["a"]
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 5)


async def test_a_batch_whose_job_was_cancelled_as_a_population_is_cancelled(make: MakeDriver) -> None:
    driver = await make(HttpPool([]))
    batch_id = await driver.create(*many(5))
    await driver.jobs.cancel(batch_id.replace("_", "-"))
    assert (await driver.ended(batch_id))["status"] == "cancelled"


async def test_a_cancelled_batch_whose_input_was_deleted_keeps_what_is_done(make: MakeDriver) -> None:
    pool = HttpPool(["a"])
    pool.hold_s = 0.05
    driver = await make(pool)
    batch_id = await driver.create(*many(100))
    await driver.reaches(batch_id, 8)
    driver.files.delete((await driver.batches.retrieve(batch_id))["input_file_id"])
    await driver.batches.cancel(batch_id)
    batch = await driver.ended(batch_id)
    assert batch["status"] == "cancelled"
    assert len(driver.lines(batch["output_file_id"])) == batch["request_counts"]["completed"] >= 8


async def test_a_batch_that_cannot_go_on_without_its_deleted_input_fails_with_what_is_done(make: MakeDriver) -> None:
    pool = HttpPool(["a"])
    pool.hold_s = 0.05
    driver = await make(pool, replica_wait_s=0.2)
    batch_id = await driver.create(*many(100))
    await driver.reaches(batch_id, 8)
    driver.files.delete((await driver.batches.retrieve(batch_id))["input_file_id"])
    pool.names = []
    batch = await driver.ended(batch_id)
    assert batch["status"] == "failed"
    assert [error["code"] for error in batch["errors"]["data"]] == ["input_file_not_found"]
    assert 100 > len(driver.lines(batch["output_file_id"])) == batch["request_counts"]["completed"] >= 8


async def test_a_batch_whose_rows_are_all_done_is_completed_though_its_input_was_deleted(make: MakeDriver) -> None:
    pool = HttpPool([])
    driver = await make(pool)
    batch_id = await driver.create(*many(10))
    while (await driver.batches.retrieve(batch_id))["status"] == "validating":
        await asyncio.sleep(0.01)
    pool.hold_s = 0.2
    pool.names = ["a"]
    while not pool.served:
        await asyncio.sleep(0.01)
    driver.files.delete((await driver.batches.retrieve(batch_id))["input_file_id"])
    batch = await driver.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 10)


async def test_output_files_expire_when_the_batch_says(make: MakeDriver, clock: Clock) -> None:
    driver = await make(HttpPool(["a"]))
    expires = {"anchor": "created_at", "seconds": 7200}
    batch = await driver.ended(await driver.create(*many(2), b"bad", output_expires_after=expires))
    for file_id in (batch["output_file_id"], batch["error_file_id"]):
        stored = driver.files.get(file_id)
        assert (stored.purpose, stored.expires_at) == ("batch_output", clock.now + 7200)
