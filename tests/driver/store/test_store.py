import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from msgspec.structs import fields, replace

from serve_app.driver.store.log import OutcomeLog
from serve_app.driver.store.store import JobStore, Store
from serve_app.driver.store.table import SCHEMA, from_table, to_table
from serve_app.errors import BadSettings, JobConflict, JobNotFound, StoreError
from serve_app.schema import Outcome
from serve_app.storage.filesystem import resolve

ROOT = Path(__file__).parents[3]
HASH = hashlib.sha256(b"question").hexdigest()[:32]
OUTCOME = Outcome(
    "row-0", HASH, "ok", {"text": "a\u2028b\x85c\n"}, None, 1, "r", "m", "v", False, 1, 0, 1, 0.5, "2026-01-01T00:00:00"
)


def some(*ids: object) -> list[Outcome]:
    return [replace(OUTCOME, custom_id=str(i)) for i in ids]


def ids(log: OutcomeLog | JobStore, after: int = 0) -> list[str]:
    return [outcome.custom_id for outcome in log.outcomes(after)]


def writer(root: str | Path, job_id: str = "job-1", part: int = 0, **options: Any) -> OutcomeLog:
    store = Store(str(root))
    with suppress(JobConflict):
        store.create(job_id, {})
    log = store.open(job_id).part(part, **options)
    log.begin()
    return log


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store's URL: what holds for one kind holds for the other."""
    if request.param == "local":
        return str(tmp_path / "runs")
    url: str = request.getfixturevalue("s3")
    return url.format(tmp_path.name)


# --- tables ---

TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
COUNT = st.integers(0, 2**40)
OUTCOMES = st.builds(
    Outcome,
    custom_id=TEXT,
    content_hash=st.binary(min_size=16, max_size=16).map(bytes.hex),
    status=st.sampled_from(["ok", "invalid", "failed"]),
    value=st.none() | st.dictionaries(TEXT, JSON, max_size=3),
    error=st.none() | TEXT,
    attempts=st.integers(0, 2**31 - 1),
    replica=st.none() | TEXT,
    model=TEXT,
    engine_version=st.none() | TEXT,
    simulated=st.booleans(),
    prompt_tokens=COUNT,
    cached_tokens=COUNT,
    completion_tokens=COUNT,
    latency_ms=st.floats(0, allow_infinity=False),
    finished_at=TEXT,
    reused_from=st.none() | TEXT,
)


@given(st.lists(OUTCOMES, max_size=5))
@settings(deadline=None)
def test_outcomes_survive_a_table_whatever_their_text(outcomes: list[Outcome]) -> None:
    assert from_table(to_table(outcomes)) == outcomes


@given(st.lists(OUTCOMES, min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_outcomes_survive_the_disk_whatever_their_text(outcomes: list[Outcome]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = writer(folder)
        log.append(outcomes, {})
        assert list(log.outcomes()) == outcomes


def test_a_table_has_a_column_for_each_field_of_an_outcome() -> None:
    assert SCHEMA.names == [field.name for field in fields(Outcome)]
    assert to_table([OUTCOME]).schema == SCHEMA


def test_lone_surrogates_become_replacement_characters_and_pairs_become_one(tmp_path: Path) -> None:
    log = writer(tmp_path)
    odd = replace(OUTCOME, error="a\ud800b", value={"te\udfffxt": ["\ud83d\ude00", "\udc00"]})
    log.append([OUTCOME, odd], {})
    assert list(log.outcomes()) == [OUTCOME, replace(odd, error="a\ufffdb", value={"te\ufffdxt": ["😀", "\ufffd"]})]


# --- jobs ---


def test_a_job_keeps_what_was_asked_and_how_it_stands(root: str) -> None:
    job = Store(root).create("job-1", {"workload": "ctr/1", "labels": ["a"]})
    job.update(state="running", parts=[[0, 10]], report={"total": 10})
    job.update(message="reading")
    again = Store(root).open("job-1")
    assert again.job_id == "job-1"
    assert again.spec() == {"workload": "ctr/1", "labels": ["a"]}
    manifest = again.manifest()
    assert manifest.pop("created_at").startswith("20")  # type: ignore[misc]
    assert manifest == {"state": "running", "message": "reading", "parts": [[0, 10]], "report": {"total": 10}}


def test_jobs_are_listed_newest_first_and_only_whole_ones(root: str) -> None:
    store = Store(root)
    assert store.jobs() == []
    for job_id in ("b", "c", "a"):
        store.create(job_id, {}).update(state="running")
    store.open("b").update(state="completed")
    store._job("half")._folder.make()  # a creation that was cut short
    store._job("half")._folder.write("job.json", b"{}")
    assert store.jobs() == ["a", "c", "b"]
    with pytest.raises(JobNotFound):
        store.open("half")


def test_a_job_is_created_once(root: str) -> None:
    Store(root).create("job-1", {"first": True})
    with pytest.raises(JobConflict, match="job 'job-1' exists already"):
        Store(root).create("job-1", {"first": False})
    assert Store(root).open("job-1").spec() == {"first": True}


def test_a_deleted_job_is_gone_with_all_its_files(root: str) -> None:
    writer(root).append(some(1), {})
    store = Store(root)
    store.delete("job-1")
    assert store.jobs() == []
    with pytest.raises(JobNotFound, match="no job 'job-1' in "):
        store.delete("job-1")
    assert ids(store.create("job-1", {})) == []


def test_nothing_of_a_half_deleted_job_becomes_the_next_one_of_its_name(root: str) -> None:
    writer(root).append(some(1), {})
    Store(root).open("job-1")._folder.delete("manifest.json")
    assert ids(Store(root).create("job-1", {})) == []


def test_an_uploaded_file_is_there_once_it_is_whole(root: str) -> None:
    job = Store(root).create("job-1", {})
    filesystem, path = resolve(job.path("input.jsonl.gz"))
    with job.open_output("input.jsonl.gz") as file:
        file.write(b"one\n")
        assert not filesystem.get_file_info(path).is_file
        file.write(b"two\n")
    with filesystem.open_input_stream(path, compression=None) as read:
        assert read.read() == b"one\ntwo\n"
    with suppress(RuntimeError), job.open_output("half.csv") as file:
        file.write(b"one\n")
        raise RuntimeError
    assert not filesystem.get_file_info(resolve(job.path("half.csv"))[1]).is_file
    job.put("small.csv", b"three\n")
    assert filesystem.get_file_info(resolve(job.path("small.csv"))[1]).size == 6


@pytest.mark.parametrize("bad", ["../up", "a/b", "", ".hidden", "manifest.json", "parts", "a?b"])
def test_an_uploaded_file_cannot_leave_the_jobs_folder_or_take_its_names(tmp_path: Path, bad: str) -> None:
    job = Store(str(tmp_path)).create("job-1", {})
    with pytest.raises(BadSettings, match="file name '"):
        job.path(bad)
    with pytest.raises(BadSettings, match="file name '"), job.open_output(bad):
        pass


@pytest.mark.parametrize("bad", ["../up", "a/b", "", "Upper", ".hidden", "a" * 81])
def test_a_job_id_cannot_leave_the_store(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BadSettings, match="job id"):
        Store(str(tmp_path)).open(bad)
    with pytest.raises(BadSettings, match="job id"):
        Store(str(tmp_path)).create(bad, {})


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
    loads, load = iter([two._load()]), two._load  # the second has looked before the first wrote
    one.begin()
    with mock.patch.object(two, "_load", side_effect=lambda: next(loads, None) or load()):
        two.begin()
    assert one._mine.epoch == two._mine.epoch
    with pytest.raises(JobConflict, match="another driver took over"):
        one.append(some(1), {})
    two.append(some(2), {})
    assert ids(two) == ["2"]


def test_files_that_no_manifest_names_are_not_read_and_go_when_the_next_writer_begins(root: str) -> None:
    log = writer(root)
    log.append(some(1), {})
    log._write(to_table(some("lost")))
    log._segments.write(".0001-000009.parquet.tmp", b"half")
    assert ids(log) == ["1"]
    again = writer(root)
    assert ids(again) == ["1"]
    files = {info.base_name for info in again._folder.list(recursive=True) if info.is_file}
    assert files == {"manifest.json", again._load().segments[0].name}


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


class Log(RuleBasedStateMachine):
    """Any order of commits, takeovers, errors and readers against a list."""

    stale, readers = Bundle("stale"), Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        # No power fails here, and the disk's patience is another test's.
        self.fsync = mock.patch("os.fsync")
        self.fsync.start()
        self.model: list[str] = []
        self.next = 0

    def teardown(self) -> None:
        self.fsync.stop()
        self.folder.cleanup()

    def _new(self, count: int) -> list[str]:
        self.next += count
        return [str(i) for i in range(self.next - count, self.next)]

    @initialize()
    def create(self) -> None:
        self.log = writer(self.folder.name, fan_out=3)

    @rule(count=st.integers(0, 4))
    def append(self, count: int) -> None:
        rows = self._new(count)
        self.log.append(some(*rows), {"ok": len(self.model) + count})
        self.model += rows

    @rule(commits=st.integers(1, 10))
    def append_often(self, commits: int) -> None:
        for _ in range(commits):
            self.append(1)

    @rule(target=stale)
    def take_over(self) -> OutcomeLog:
        return self._take_over()

    def _take_over(self) -> OutcomeLog:
        stale, self.log = self.log, writer(self.folder.name, fan_out=3)
        return stale

    @rule(log=stale)
    def append_stale(self, log: OutcomeLog) -> None:
        with pytest.raises(JobConflict, match="another driver took over"):
            log.append(some("stale"), {"ok": -1})

    @rule(target=stale, step=st.integers(0, 5))
    def fail_while_appending(self, step: int) -> OutcomeLog:
        rows = self._new(1)
        rename, left = os.replace, iter([None] * step)

        def replace_or_fail(*paths: str) -> None:
            if next(left, self) is self:
                raise OSError("unplugged")
            rename(*paths)

        try:
            with mock.patch("os.replace", replace_or_fail):
                self.log.append(some(*rows), {"ok": len(self.model) + 1})
            self.model += rows
        except StoreError:
            with pytest.raises(StoreError, match="unplugged"):
                self.log.append(some("again"), {})
            self.log.begin()
        return self._take_over()

    @rule(target=readers, after=st.integers(0, 40))
    def start_reading(self, after: int) -> tuple[int, Iterator[pa.Table]]:
        after = min(after, len(self.model))
        reader = OutcomeLog(self.log._folder).tables(after)
        table = next(reader, None)  # it has chosen its segments
        names = [] if table is None else table["custom_id"].to_pylist()
        assert names == self.model[after : after + len(names)]
        return after + len(names), reader

    @rule(reading=consumes(readers))
    def read_on(self, reading: tuple[int, Iterator[pa.Table]]) -> None:
        after, reader = reading
        names = [name for table in reader for name in table["custom_id"].to_pylist()]
        assert names == self.model[after : after + len(names)]

    @invariant()
    def all_is_there_in_order(self) -> None:
        if self.next:
            fresh = OutcomeLog(self.log._folder)
            assert ids(fresh) == self.model
            middle = len(self.model) // 2
            assert ids(fresh, middle) == self.model[middle:]
            assert (fresh.rows, fresh.report) == (len(self.model), {"ok": len(self.model)} if fresh.report else {})
            levels = [segment.level for segment in fresh._load().segments]
            assert levels == sorted(levels, reverse=True)


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


# --- SIGKILL ---

WRITER = """
import sys
from tests.driver.store.test_store import some, writer
log = writer(sys.argv[1], fan_out=3)
for i in range(log.rows // 20, 10_000):
    log.append(some(*(f"{i}-{j}" for j in range(20))), {"ok": i})
    print(i, flush=True)
"""


def test_sigkill_at_any_moment_loses_no_committed_row_and_tears_none(tmp_path: Path) -> None:
    Store(str(tmp_path)).create("job-1", {})
    for _ in range(4):  # each goes on with what the one before has left
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline())]
        time.sleep(random.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.wait()
        process.stdout.close()
        found = ids(Store(str(tmp_path)).open("job-1"))
        commits = len(found) // 20
        assert commits in (acknowledged[-1] + 1, acknowledged[-1] + 2)  # the last may not be acknowledged yet
        assert found == [f"{i}-{j}" for i in range(commits) for j in range(20)]


STEPS = """
import json, os, signal, sys
from serve_app.storage import filesystem as files
from tests.driver.store.test_store import ids, some, writer

def write(folder, step, acknowledge):
    left = iter(range(step))
    def or_die(call):
        def called(*arguments, **options):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return called
    for module, name in [(os, "fsync"), (os, "replace"), (files.Folder, "delete"), (files.Folder, "open_output")]:
        setattr(module, name, or_die(getattr(module, name)))
    log = writer(folder, fan_out=2)
    for i in range(6):
        log.append(some(i), {"ok": i})
        os.write(acknowledge, b".")

step, killed = 0, True
while killed:
    folder = f"{sys.argv[1]}/{step}"
    writer(folder)
    read_end, write_end = os.pipe()
    if not (child := os.fork()):
        write(folder, step, write_end)
        os._exit(0)
    os.close(write_end)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    acknowledged = len(os.read(read_end, 100))
    os.close(read_end)
    found = ids(writer(folder))
    files_left = len(os.listdir(f"{folder}/job-1/parts/0000/segments"))
    named = len(writer(folder)._load().segments)
    print(json.dumps([killed, acknowledged, found, files_left, named]), flush=True)
    step += 1
"""


def test_sigkill_before_any_step_of_commits_and_compactions_loses_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STEPS, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert len(runs) > 40
    assert runs[-1][:3] == [False, 6, [str(i) for i in range(6)]]
    for _, acknowledged, found, files_left, named in runs:
        assert found in ([str(i) for i in range(n)] for n in (acknowledged, acknowledged + 1))
        assert files_left == named


# --- errors ---


def test_an_unknown_job_is_named(root: str) -> None:
    with pytest.raises(JobNotFound, match="no job 'nope' in "):
        Store(root).open("nope")


def test_a_store_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="cannot write .*runs.*: Not a directory"):
        Store(str(tmp_path / "runs")).create("job-1", {})


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(StoreError, match="cannot write s3://other/runs/job-1/job.json: .*bucket"):
        Store(s3.replace("bucket", "other").format("runs")).create("job-1", {})


@pytest.mark.parametrize("content", [None, b"", b"PAR1 not Parquet PAR1"])
def test_a_segment_that_cannot_be_read_says_where(tmp_path: Path, content: bytes | None) -> None:
    log = writer(tmp_path)
    log.append(some(1), {})
    [path] = (tmp_path / "job-1" / "parts" / "0000" / "segments").iterdir()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"cannot read .*{path.name}: ."):
        list(log.outcomes())


def test_a_manifest_that_cannot_be_read_says_where(tmp_path: Path) -> None:
    log = writer(tmp_path)
    (tmp_path / "job-1" / "parts" / "0000" / "manifest.json").write_text('{"segments": 7}')
    with pytest.raises(StoreError, match=r"cannot read .*parts/0000/manifest\.json: .*segments"):
        _ = log.rows
    (tmp_path / "job-1" / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"cannot read .*job-1/manifest\.json: "):
        Store(str(tmp_path)).jobs()
