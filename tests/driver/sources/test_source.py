"""Sources that are refused, changed, or came with the request."""

import gzip
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from fastapi.staticfiles import StaticFiles
from hypothesis import given
from hypothesis import strategies as st

from serve_app.addresses import Reach
from serve_app.driver.sources.files import fingerprint, write_rows
from serve_app.driver.sources.source import Source, check_ids, open_source
from serve_app.driver.sources.template import Input
from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.spec import JobSpec
from tests.conftest import served
from tests.driver.sources.kit import ENCODERS, as_jsonl, opened, written


@pytest.mark.parametrize(
    ("name", "content", "spec", "problem"),
    [
        ("a.csv", None, {}, "^source: cannot read .*a.csv: .*(No such|not exist|not found)"),
        ("a.jsonl", None, {}, "^source: cannot read .*a.jsonl"),
        ("a.parquet", None, {}, "^source: cannot read .*a.parquet"),
        ("a.parquet", b"no such thing", {}, "^source: cannot read .*a.parquet: .*Parquet"),
        ("a.csv.gz", b"no such thing", {}, "^source: cannot read .*a.csv.gz"),
        ("a.parquet.gz", b"", {}, "^source: .*unpack it"),
        ("a.dat", b"", {}, "^format: cannot tell .*a.dat: give one of csv, jsonl, parquet"),
        ("a.csv", b"", {}, "^source: .*a.csv: line 1 has no column names: the file is empty"),
        ("a.csv", b"\x81n\n", {}, "^source: .*a.csv: line 1 has no column names: the line is not UTF-8"),
        ("a.csv", b"prompt,a,prompt\n", {}, "^source: .* more than one column 'prompt'"),
        ("a.csv", b"name,age\n", {"prompt": "{nmae}"}, "^prompt: .*a.csv has no column 'nmae'; nearest: 'name'"),
        ("a.csv", b"name,age\n", {}, "^prompt: .*give a template of its columns, 'name', 'age'"),
        ("a.csv", b"prompt\n", {"id_column": "key"}, "^id_column: .*'key'"),
    ],
)
def test_a_source_that_is_wrong_is_refused_at_once_by_its_field(
    tmp_path: Path, name: str, content: bytes | None, spec: dict[str, Any], problem: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadSettings, match=problem):
        opened(tmp_path / name, **spec)


def test_a_file_that_breaks_off_is_an_error_and_not_an_end(tmp_path: Path) -> None:
    packed = gzip.compress(as_jsonl([(str(i * i), "x") for i in range(100_000)]))
    source = opened(written(tmp_path / "a.jsonl.gz", packed[: len(packed) // 2]), prompt="{name}")
    with pytest.raises(BadSettings, match="^source: cannot read .*a.jsonl.gz"):
        list(source.rows())


def test_a_format_that_is_given_overrides_the_files_name(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"prompt\nHi\n")
    assert list(opened(path, format="csv").rows()) == [Row("row-1", prompt="Hi")]


def test_rows_of_a_request_are_kept_in_the_jobs_folder_and_come_back(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"custom_id": "a", "prompt": "line\u2028separator\nand end"},
        {"messages": [{"role": "user", "content": "é"}]},
    ]
    with (tmp_path / "input.jsonl").open("wb") as file:
        write_rows(given, file)
    spec = JobSpec(source="job:input.jsonl")
    for folder in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        assert list(open_source(spec, folder_url=folder).rows()) == [
            Row("a", prompt="line\u2028separator\nand end"),
            Row("row-2", ({"role": "user", "content": "é"},)),
        ]
    assert fingerprint(spec) == ""


def test_a_row_that_json_cannot_hold_is_named() -> None:
    with pytest.raises(BadSettings, match=r"^rows\[1\]: "):
        write_rows([{"prompt": "Hi"}, {"prompt": "\ud800"}], io.BytesIO())


@pytest.mark.parametrize("name", ["../a.jsonl", "/etc/a.jsonl", "..", ""])
def test_a_job_file_is_in_the_jobs_own_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadSettings, match="^source: 'job:.*' is no file of the job's folder"):
        open_source(JobSpec(source=f"job:{name}", format="jsonl"), folder_url=str(tmp_path))


def ids_of(*ids: str) -> Source:
    class Fixed:
        def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
            return islice(map(Row, ids), start, stop)

        def inputs(self) -> Iterator[Input]:
            return (Input({}, row) for row in self.rows())

        def ids(self) -> Iterator[str]:
            return iter(ids)

        def count(self) -> int:
            return len(ids)

    return Fixed()


@given(ids=st.lists(st.text("ab", max_size=3), max_size=12))
def test_the_first_id_that_is_given_twice_is_named_with_both_its_rows(ids: list[str]) -> None:
    second = next((i for i, custom_id in enumerate(ids) if custom_id in ids[:i]), None)
    if second is None:
        check_ids(ids_of(*ids))
        return
    with pytest.raises(BadSettings) as caught:
        check_ids(ids_of(*ids))
    rows = f"rows {ids.index(ids[second]) + 1} and {second + 1}"
    assert str(caught.value).startswith(f"custom_id '{ids[second]}' is given twice, in {rows}: ")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    with served(StaticFiles(directory=tmp_path), lifespan="off") as url:
        yield url


def test_a_file_is_read_from_a_web_server(tmp_path: Path, web: str) -> None:
    people = [(f"name {i}", "x" * 50) for i in range(1000)]
    for kind, encode in ENCODERS.items():
        (tmp_path / f"a.{kind}").write_bytes(encode(people))
        source = opened(f"{web}/a.{kind}?signature=secret", prompt="{name}", reach=Reach.of([web], "source_urls"))
        assert [row.prompt for row in source.rows(990)] == [name for name, _ in people[990:]]
    with pytest.raises(BadSettings, match="^source: cannot read http.*/b.csv: ") as caught:
        opened(f"{web}/b.csv?signature=secret", reach=Reach.of([web], "source_urls"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("by_web", [False, True])
def test_a_file_that_changed_has_another_fingerprint(tmp_path: Path, web: str, by_web: bool) -> None:
    path = written(tmp_path / "a.csv", b"prompt\nHi\n")
    spec = JobSpec(source=f"{web}/a.csv" if by_web else str(path))
    reach = Reach.of([web], "source_urls")
    before = fingerprint(spec, reach)
    assert before == fingerprint(spec, reach) != ""
    path.write_bytes(b"prompt\nHi there\n")
    assert fingerprint(spec, reach) != before
    path.unlink()
    with pytest.raises(BadSettings, match="^source: cannot read"):
        fingerprint(spec, reach)
