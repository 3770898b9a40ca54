"""A part's log: commits, compaction, and writers that follow one another."""

import hashlib
import os
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest
from msgspec.structs import replace

from serve_app.driver.store.manifest import to_json
from serve_app.driver.store.store import Store
from serve_app.driver.store.table import GROUP_BYTES, to_table
from serve_app.errors import JobConflict, StoreError
from serve_app.storage.filesystem import Folder, Version
from tests.driver.store.kit import OUTCOME, ids, some, writer

# --- commits ---


def test_what_is_committed_is_read_back_in_order_with_its_report(root: str) -> None:
    log = writer(root, fan_out=3)
    for commit in range(13):  # two levels of compaction, and some left over
        log.append(some(2 * commit, 2 * commit + 1), {"ok": 2 * commit + 2})
    again = Store(root).open("job-1").part(0)
    assert ids(again) == [str(i) for i in range(26)]
    assert [ids(again, after)[:1] for after in (0, 1, 17, 25, 26)] == [["0"], ["1"], ["17"], ["25"], []]
    assert (again.rows, again.report) == (26, {"ok": 26})
    names = [table.column_names for table in again.tables(columns=["custom_id", "status"])]
    assert names
    assert all(name == ["custom_id", "status"] for name in names)


def test_a_part_that_has_not_begun_is_empty(root: str) -> None:
    log = Store(root).create("job-1", {}).part(3)
    assert (log.rows, log.report, ids(log)) == (0, {}, [])
    assert log.committed().get(b"0" * 16) is None
    with pytest.raises(JobConflict, match="begin"):
        log.append(some(1), {})


def test_figures_are_committed_without_rows(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.append([], {"run_s": 1.5})
    assert (log.rows, log.report, ids(log)) == (0, {"run_s": 1.5}, [])


def test_a_job_reads_its_parts_one_after_another(root: str) -> None:
    for part in (0, 1, 2):
        writer(root, part=part).append(some(*range(10 * part, 10 * part + 3)), {})
    writer(root, part=0).append([replace(OUTCOME, custom_id="bad", status="failed")], {})
    job = Store(root).open("job-1")
    order = ["0", "1", "2", "bad", "10", "11", "12", "20", "21", "22"]
    assert [ids(job, after) for after in range(11)] == [order[after:] for after in range(11)]
    assert [outcome.custom_id for outcome in job.outcomes(status="failed")] == ["bad"]
    assert [outcome.custom_id for outcome in job.outcomes(3, "ok")] == order[4:]
    assert sum(table.num_rows for table in job.tables(2)) == 8
    assert [log.rows for log in job.parts()] == [4, 3, 3]


def test_committed_ids_lead_to_their_questions(root: str) -> None:
    log = writer(root, fan_out=3)
    hashes = {f"row-é{i}": hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(20)}
    for name, content in hashes.items():
        log.append([replace(OUTCOME, custom_id=name, content_hash=content)], {})
    found = log.committed().lookup([hashlib.sha256(name.encode()).digest()[:16] for name in [*hashes, "row-20"]])
    assert found == [*(int(content[:16], 16) for content in hashes.values()), None]


def test_segments_stay_few_and_replaced_ones_go_at_the_next_compaction(tmp_path: Path) -> None:
    log = writer(tmp_path, fan_out=4)
    folder = tmp_path / "job-1" / "parts" / "0000" / "segments"
    for commit in range(100):
        before = {segment.name for segment in log._load().segments}
        log.append(some(commit), {})
        now = {segment.name for segment in log._load().segments}
        assert len(now) <= 4 * 4
        assert before | now <= set(os.listdir(folder))
        assert len(os.listdir(folder)) <= 4 * 4 + 3 * 4
    assert ids(log) == [str(i) for i in range(100)]


def test_order_holds_when_a_later_writer_merges_fewer_segments_than_there_are(tmp_path: Path) -> None:
    for commit in range(7):
        writer(tmp_path, fan_out=10).append(some(commit), {})
    for commit in range(7, 14):
        log = writer(tmp_path, fan_out=3)
        log.append(some(commit), {})
        assert ids(log) == [str(i) for i in range(commit + 1)]


def test_a_table_once_seen_is_never_cut_by_a_compaction(tmp_path: Path) -> None:
    log = writer(tmp_path, fan_out=3)
    rows, seen = 0, []
    with mock.patch("serve_app.driver.store.table.GROUP_ROWS", 20):
        for size in (7, 9, 1, 30, 5, 5, 11, 2, 8, 8, 8, 3, 19, 1):
            seen.append((rows, size))
            log.append(some(*range(rows, rows + size)), {})
            rows += size
            for after, size in seen:
                table = next(log.tables(after))
                assert table.num_rows >= size
                assert table["custom_id"][0].as_py() == str(after)
    assert max(table.num_rows for table in log.tables()) <= 30


def test_a_reader_goes_on_when_its_segments_are_compacted_away(tmp_path: Path) -> None:
    log = writer(tmp_path, fan_out=3)
    for commit in range(3):
        log.append(some(commit), {})
    reader = log.tables()
    assert next(reader)["custom_id"].to_pylist() == ["0"]
    for commit in range(3, 27):
        log.append(some(commit), {})
    assert [name for table in reader for name in table["custom_id"].to_pylist()] == [str(i) for i in range(1, 27)]


def test_a_reader_holds_one_row_group_however_large_the_segment(tmp_path: Path) -> None:
    log = writer(tmp_path, fan_out=4)
    rows = 0
    for _ in range(8):  # a merged segment, and commits that are large themselves
        text = os.urandom(5000).hex()
        log.append([replace(row, value={"text": text + row.custom_id}) for row in some(*range(rows, rows + 1000))], {})
        rows += 1000
    before, most = pa.total_allocated_bytes(), 0
    for table in log.tables():
        most = max(most, pa.total_allocated_bytes() - before)
        assert table.nbytes <= GROUP_BYTES + 20_000
    assert GROUP_BYTES < most < 4 * GROUP_BYTES


# --- one writer ---


def test_a_writer_that_another_one_followed_commits_nothing_more(root: str) -> None:
    old = writer(root)
    old.append(some(1), {"old": 1})
    new = writer(root)
    with pytest.raises(JobConflict, match=r"another driver took over \(epoch 2, this one's is 1\)"):
        old.append(some(2), {"old": 2})
    new.append(some(3), {"new": 3})
    with pytest.raises(JobConflict, match="another driver took over"):
        old.append(some(4), {})
    assert ids(new) == ["1", "3"]
    assert new.report == {"new": 3}


def test_of_two_writers_that_begin_at_once_the_last_one_commits(root: str) -> None:
    job = Store(root).create("job-1", {})
    one, two = job.part(0), job.part(0)
    finds, find = iter([two._find()]), two._find  # the second has looked before the first wrote
    one.begin()
    with mock.patch.object(two, "_find", side_effect=lambda: next(finds, None) or find()):
        two.begin()
    assert (one._mine.epoch, two._mine.epoch) == (1, 2)
    with pytest.raises(JobConflict, match="another driver took over"):
        one.append(some(1), {})
    two.append(some(2), {})
    assert ids(two) == ["2"]


def test_a_writer_whose_manifest_is_late_replaces_none_of_a_later_writer(root: str) -> None:
    old, new = writer(root), Store(root).open("job-1").part(0)
    old.append(some(1), {})
    write, late = Folder.replace, iter([new.begin])  # begins between the last look of the one before and its write

    def replace_late(folder: Folder, name: str, data: bytes, seen: Version | None) -> Version:
        if (begin := next(late, None)) is not None:
            begin()
        return write(folder, name, data, seen)

    with mock.patch.object(Folder, "replace", replace_late), pytest.raises(JobConflict, match="another driver"):
        old.append(some(2), {})
    new.append(some(2), {})
    assert ids(new) == ["1", "2"]
    assert ids(writer(root)) == ["1", "2"]


def test_a_later_writers_files_are_left_alone(root: str) -> None:
    old, new = writer(root), Store(root).open("job-1").part(0)
    new.begin()
    segment = new._write(to_table(some(1)))  # and its manifest is on its way
    old._sweep()
    assert segment.name in {info.base_name for info in new._segments.list()}


def test_segments_whose_manifest_is_lost_are_no_empty_part(root: str) -> None:
    log = writer(root)
    log.append(some(1), {})
    log._folder.delete("manifest.json")
    again = Store(root).open("job-1").part(0)
    for act in (again.begin, lambda: again.rows, lambda: ids(again)):
        with pytest.raises(StoreError, match=r"parts/0000.* has 1 segments and no manifest\.json"):
            act()
    log._folder.write("manifest.json", to_json(log._mine))
    assert ids(again) == ["1"]


def test_a_writer_whose_job_was_deleted_stops(root: str) -> None:
    log = writer(root)
    Store(root).delete("job-1")
    with pytest.raises(
        (JobConflict, StoreError), match="the job was deleted while it ran|and no manifest|No such file"
    ):
        log.append(some(1), {})


def test_files_that_no_manifest_names_are_not_read_and_go_when_the_next_writer_begins(root: str) -> None:
    log = writer(root)
    log.append(some(1), {})
    log._write(to_table(some("lost")))
    log._segments.write(".0001-000009-ab.parquet.cd.tmp", b"half")
    assert ids(log) == ["1"]
    again = writer(root)
    assert ids(again) == ["1"]
    files = {info.base_name for info in again._folder.list(recursive=True) if info.is_file}
    assert files - {".lock"} == {"manifest.json", again._load().segments[0].name}


def test_after_an_error_a_writer_says_it_again_and_commits_nothing(tmp_path: Path) -> None:
    log = writer(tmp_path)
    full = mock.patch("os.replace", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(StoreError, match=r"cannot write .*job-1.*: No space left"):
        log.append(some(1), {})
    with pytest.raises(StoreError, match="No space left"):
        log.append(some(2), {})
    assert ids(log) == []
    log.begin()
    log.append(some(3), {})
    assert ids(log) == ["3"]


def test_a_job_or_part_is_held_by_one_run_at_a_time_and_free_after_its_end(tmp_path: Path) -> None:
    job, same = Store(str(tmp_path)).create("job-1", {}), Store(str(tmp_path)).open("job-1")
    with job.lock(), job.lock(0), job.lock(1):
        with pytest.raises(JobConflict, match="job 'job-1' is being run by another driver"), same.lock():
            pass
        with pytest.raises(JobConflict, match="part 1 of job 'job-1' is being run"), same.lock(1):
            pass
    with pytest.raises(RuntimeError), same.lock():
        raise RuntimeError
    with job.lock(), job.lock(1):
        writer(tmp_path, part=1)  # which leaves the lock's file
