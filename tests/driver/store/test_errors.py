"""Stores that cannot be read or written."""

from pathlib import Path

import pytest

from serve_app.driver.store.store import Store
from serve_app.errors import JobNotFound, StoreError
from tests.driver.store.kit import some, writer


def test_an_unknown_job_is_named(root: str) -> None:
    with pytest.raises(JobNotFound, match="no job 'nope' in "):
        Store(root).open("nope")


def test_a_store_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="cannot write .*runs.*: Not a directory"):
        Store(str(tmp_path / "runs")).create("job-1", {})


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(StoreError, match="cannot write s3://other/runs/job-1/manifest.json: .*bucket"):
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
