"""Ids that nobody asked for, and workbooks, in whichever file they are."""

import json
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from serve_app.driver.sources.source import check_ids, open_source
from serve_app.driver.sources.template import IDS_SEEN
from serve_app.errors import BadSettings
from serve_app.spec import JobSpec
from tests.driver.sources.kit import opened, written

Rows = list[dict[str, object]]


def as_csv(path: Path, rows: Rows) -> Path:
    lines: list[list[object]] = [list(rows[0]), *(list(row.values()) for row in rows)]
    return written(path, "".join(";".join("" if c is None else str(c) for c in line) + "\n" for line in lines).encode())


def as_jsonl(path: Path, rows: Rows) -> Path:
    return written(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def as_parquet(path: Path, rows: Rows) -> Path:
    pa_parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def as_xlsx(path: Path, rows: Rows) -> Path:
    book = openpyxl.Workbook()
    for line in (list(rows[0]), *(list(row.values()) for row in rows)):
        book.active.append(line)
    book.save(path)
    return path


WRITERS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet, "xlsx": as_xlsx}
each = pytest.mark.parametrize(("kind", "write"), WRITERS.items(), ids=WRITERS)
Write = Callable[[Path, Rows], Path]


@each
@pytest.mark.parametrize(
    ("rows", "ids"),
    [
        ([{"id": 7, "prompt": "a"}, {"id": 8, "prompt": "b"}], ["7", "8"]),
        ([{"ID": "x", "prompt": "a"}, {"ID": "y", "prompt": "b"}], ["x", "y"]),
        ([{"id": 7, "prompt": "a"}, {"id": 7, "prompt": "b"}], ["row-1", "row-2"]),
        ([{"id": 7, "prompt": "a"}, {"id": None, "prompt": "b"}], ["row-1", "row-2"]),
        ([{"id": 7, "custom_id": "c", "prompt": "a"}, {"id": 8, "custom_id": "d", "prompt": "b"}], ["c", "d"]),
        ([{"key": 7, "prompt": "a"}, {"key": 8, "prompt": "b"}], ["row-1", "row-2"]),
    ],
)
def test_a_column_of_ids_is_used_unasked_if_they_differ(
    tmp_path: Path, kind: str, write: Write, rows: Rows, ids: list[str]
) -> None:
    source = opened(write(tmp_path / f"a.{kind}", rows))
    assert list(source.ids()) == [row.custom_id for row in source.rows()] == ids
    assert [row.prompt for row in source.rows()] == ["a", "b"]


@each
def test_an_id_that_comes_again_late_is_refused_with_what_to_do(tmp_path: Path, kind: str, write: Write) -> None:
    rows: Rows = [{"id": number % (IDS_SEEN + 1), "prompt": "a"} for number in range(IDS_SEEN + 3)]
    with pytest.raises(BadSettings, match="'0' is given twice, in rows 1 and 1002: make ids unique, or name another"):
        check_ids(opened(write(tmp_path / f"a.{kind}", rows)))


def test_a_workbook_is_read_from_any_row_on_and_counted(tmp_path: Path) -> None:
    rows: Rows = [{"id": number, "name": f"n{number}", "share": number / 4} for number in range(2000)]
    source = opened(as_xlsx(tmp_path / "a.xlsx", rows), prompt="{name}: {share}")
    assert [row.prompt for row in source.rows(1997)] == ["n1997: 499.25", "n1998: 499.5", "n1999: 499.75"]
    assert (source.count(), list(source.ids())[-1]) == (2000, "1999")


def test_a_workbook_is_one_by_its_format_too_and_not_compressed_again(tmp_path: Path) -> None:
    path = as_xlsx(tmp_path / "a.xlsx", [{"prompt": "a"}, {"prompt": "b"}])
    path.rename(tmp_path / "a.dat")
    assert [row.prompt for row in opened(tmp_path / "a.dat", format="xlsx").rows()] == ["a", "b"]
    with pytest.raises(BadSettings, match=r"a.xlsx.gz is compressed around a format that compresses inside: unpack it"):
        opened(tmp_path / "a.xlsx.gz")


def test_errors_name_the_users_file_and_not_the_jobs_folder(tmp_path: Path) -> None:
    written(tmp_path / "input-people.csv", b"name;age\nAnn;3\n")
    spec = JobSpec(source="job:input-people.csv", prompt="{nmae}")
    with pytest.raises(BadSettings, match="^prompt: people.csv has no column 'nmae'; nearest: 'name'"):
        open_source(spec, folder_url=str(tmp_path))
    with pytest.raises(BadSettings, match="^source: cannot read gone.parquet: ") as caught:
        open_source(JobSpec(source="job:input-gone.parquet", prompt="x"), folder_url=str(tmp_path))
    assert "input-" not in str(caught.value)
