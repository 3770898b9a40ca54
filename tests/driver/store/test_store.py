from contextlib import suppress
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from serve_app.driver.store.store import Store
from serve_app.errors import BadSettings, JobConflict, JobNotFound
from serve_app.spec import JobState
from serve_app.storage.filesystem import Folder, Version, resolve
from tests.driver.store.kit import ids, some, writer


def test_a_job_keeps_what_was_asked_and_how_it_stands(root: str) -> None:
    job = Store(root).create("job-1", {"workload": "ctr/1", "labels": ["a"]})
    job.update(state=JobState.RUNNING, parts=[[0, 10]], report={"total": 10})
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
        store.create(job_id, {}).update(state=JobState.RUNNING)
    store.open("b").update(state=JobState.COMPLETED)
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


def test_a_write_that_fails_leaves_the_file_that_stood_there(root: str) -> None:
    job = Store(root).create("job-1", {})
    job.put("input.csv", b"before")
    with suppress(RuntimeError), job.open_output("input.csv") as file:
        file.write(b"x" * 100_000)
        raise RuntimeError
    filesystem, path = resolve(job.path("input.csv"))
    with filesystem.open_input_stream(path) as read:
        assert read.read() == b"before"


def test_of_two_drivers_that_create_a_job_one_does_and_its_question_stands(root: str) -> None:
    one, two = Store(root), Store(root)
    replace, first = Folder.replace, iter([lambda: two.create("job-1", {"by": "two"})])

    def slow(folder: Folder, name: str, data: bytes, seen: Version | None) -> Version:
        if (create := next(first, None)) is not None:
            create()
        return replace(folder, name, data, seen)

    with mock.patch.object(Folder, "replace", slow), pytest.raises(JobConflict, match="job 'job-1' exists already"):
        one.create("job-1", {"by": "one"})
    assert one.open("job-1").spec() == {"by": "two"}


def test_two_updates_at_once_are_both_kept(root: str) -> None:
    job = Store(root).create("job-1", {})
    same = Store(root).open("job-1")
    replace, first = Folder.replace, iter([lambda: same.update(report={"total": 3})])

    def slow(folder: Folder, name: str, data: bytes, seen: Version | None) -> Version:
        if (update := next(first, None)) is not None:
            update()
        return replace(folder, name, data, seen)

    with mock.patch.object(Folder, "replace", slow):
        job.update(message="reading")
    assert (job.manifest()["message"], job.manifest()["report"]) == ("reading", {"total": 3})


def test_a_state_changes_only_from_one_that_is_expected(root: str) -> None:
    job = Store(root).create("job-1", {})
    job.update(expected=[JobState.QUEUED], state=JobState.CANCELLED)
    with pytest.raises(JobConflict, match="job 'job-1' is cancelled"):
        job.update(expected=[JobState.QUEUED, JobState.RUNNING], state=JobState.COMPLETED)
    assert job.manifest()["state"] == JobState.CANCELLED
    Store(root).delete("job-1")
    with pytest.raises(JobNotFound):
        job.update(state=JobState.COMPLETED)
    assert not job.exists()


def test_a_job_of_0_1_is_read(root: str) -> None:
    folder = Store(root).create("job-1", {})._folder
    manifest = msgspec.json.decode(folder.read("manifest.json"))
    del manifest["spec"]
    folder.write("manifest.json", msgspec.json.encode(manifest))
    folder.write("job.json", b'{"workload": "w"}')
    job = Store(root).open("job-1")
    job.update(state=JobState.RUNNING)
    assert job.spec() == {"workload": "w"}
