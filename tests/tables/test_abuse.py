"""What `make abuse` found in readers of tables: files that ended the process, or took it for ever."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet
import pytest

from serve_app.driver.sources.source import open_source
from serve_app.errors import BadSettings
from serve_app.spec import JobSpec
from serve_app.tables.workbook import WorkbookTable
from serve_app.workloads.ctr.people.bank import load_bank
from serve_app.workloads.ctr.people.profile_file import ProfileFile, read_people
from tests.abuse.documents import sheet, workbook

FAR = '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            f'<row r="1"><c r="A1"><v>1</v></c></row>{FAR}',
            "a cell far from the others: save it as CSV UTF-8 or Parquet",
        ),
        ('<row r="1"><c r="A99999999999"><v>1</v></c></row>', "a cell below row 1,048,576"),
    ],
    ids=["rectangle", "wrapped row"],
)
def test_a_far_cell_is_refused_and_ends_nothing(cells: str, said: str) -> None:
    content = workbook(sheet(cells))
    with pytest.raises(BadSettings, match=said):
        WorkbookTable(lambda: content)


def test_a_sheet_may_begin_anywhere() -> None:
    content = workbook(sheet(FAR))
    assert WorkbookTable(lambda: content).columns == ("1",)


def test_each_content_is_tried_once_and_one_that_changed_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Mock(wraps=subprocess.run)
    monkeypatch.setattr(subprocess, "run", run)
    content = workbook(sheet('<row r="1"><c r="A1"><v>2027</v></c></row>'))
    tables = [WorkbookTable(lambda: content) for _ in range(2)]
    assert [list(table.records()) for table in tables] == [[], []]
    assert run.call_count == 1
    content = workbook(sheet(f'<row r="1"><c r="A1"><v>2027</v></c></row>{FAR}'))
    for _ in range(2):
        with pytest.raises(BadSettings, match="a cell far from the others"):
            list(tables[0].records())
    assert run.call_count == 3


def test_utf16_that_ends_within_a_character_is_an_unreadable_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("prompt\na\nb".encode("utf-16") + b"\x00")
    rows = list(open_source(JobSpec(source=str(path), prompt="{prompt}"), folder_url=str(tmp_path)).rows())
    assert [row.prompt for row in rows if row.error is None] == ["a"]
    assert [row.custom_id for row in rows if row.error is not None] == ["row-2-unreadable"]


def test_a_date_beyond_pythons_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    pa.parquet.write_table(pa.table({"age": [30], "born": pa.array([2**31 - 1], pa.date32())}), path)
    with pytest.raises(BadSettings, match=r"people\.parquet has a value that cannot be read: days=2147483647"):
        read_people(ProfileFile(path), load_bank("default"))


def test_large_cells_of_parquet_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    sink, before = io.BytesIO(), pa.total_allocated_bytes()
    pa.parquet.write_table(pa.table({"prompt": ["a" * 2**18] * 1000}), sink)  # kept once: the file is small
    path = tmp_path / "rows.parquet"
    path.write_bytes(sink.getvalue())
    rows = open_source(JobSpec(source=str(path)), folder_url=str(tmp_path)).rows()
    next(rows)
    assert len(sink.getvalue()) < 2**22
    assert pa.total_allocated_bytes() - before < 64 * 2**20  # was 250 MiB
