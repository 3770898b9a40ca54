"""Local files that are replaced whole. `storage/test_filesystem.py` has the order of writing, syncing and naming."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from serve_app.atomic import atomic_write
from serve_app.errors import StoreError
from serve_app.workloads.ctr.report.figures import write
from serve_app.workloads.report.page import Page, write_page


def test_the_mode_is_the_new_files_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with atomic_write(path, mode=0o600) as file:
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
        file.write(b"key")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_without_a_folder_is_one_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_write("file") as file:
        file.write(b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


def page(folder: Path) -> None:
    write_page(Page("Kind", "Title", "Sentence.", "Lead", (), (), ()), folder / "report.html")


def figures(folder: Path) -> None:
    write(folder, pa.table({"id": ["a"]}), {"rows": 1})


@pytest.mark.parametrize(("write_report", "name"), [(page, "report.html"), (figures, "results.parquet")])
def test_a_report_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_report: Callable[[Path], None], name: str
) -> None:
    (tmp_path / name).write_bytes(b"before")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match="disk full"):
        write_report(tmp_path)
    assert (tmp_path / name).read_bytes() == b"before"
    assert os.listdir(tmp_path) == [name]
