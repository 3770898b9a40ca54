import bz2
import csv
import gzip
import io
import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from fastapi.staticfiles import StaticFiles
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.driver.sources import files as sources
from serve_app.driver.sources import generated as generators
from serve_app.driver.sources.files import fingerprint, write_rows
from serve_app.driver.sources.source import Source, check_ids, open_source
from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.spec import Generator, JobSpec
from serve_app.workloads.ctr.asking.prompts import render_rows
from serve_app.workloads.ctr.people.profiles import BLOCK, generate_profiles
from tests.conftest import served

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PEOPLE = st.lists(st.tuples(TEXT, TEXT), max_size=30)


def opened(path: Path | str, **spec: Any) -> Source:
    return open_source(JobSpec(source=str(path), **spec), folder_url="unused")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def as_csv(people: list[tuple[str, str]], line_end: str = "\r\n") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("name", "city"), *people])
    return text.getvalue().encode()


def as_jsonl(people: list[tuple[str, str]]) -> bytes:
    # Unescaped, so that U+2028 and its like stand in the lines.
    return b"".join(json.dumps({"name": n, "city": c}, ensure_ascii=False).encode() + b"\n" for n, c in people)


def as_parquet(people: list[tuple[str, str]]) -> bytes:
    file = io.BytesIO()
    columns: dict[str, list[Any]] = {
        "name": [name for name, _ in people],
        "unused": list(range(len(people))),
        "city": [c for _, c in people],
    }
    types: dict[str, pa.DataType] = {"name": pa.string(), "unused": pa.int64(), "city": pa.string()}
    pa_parquet.write_table(pa.table(columns, schema=pa.schema(types)), file, row_group_size=7)
    return file.getvalue()


ENCODERS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.mark.parametrize("kind", ENCODERS)
@settings(max_examples=40, deadline=None)
@given(people=PEOPLE, data=st.data())
def test_any_text_comes_back_from_any_row_on(
    kind: str, people: list[tuple[str, str]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = written(tmp_path_factory.mktemp("source") / f"people.{kind}", ENCODERS[kind](people))
    source = opened(path, prompt="{name}|{city}")
    expected = [Row(f"row-{i + 1}", prompt=f"{name}|{city}") for i, (name, city) in enumerate(people)]
    start = data.draw(st.integers(0, len(people) + 2))
    stop = data.draw(st.none() | st.integers(0, len(people) + 2))
    assert list(source.rows()) == expected
    assert list(source.rows(start, stop)) == expected[start:stop]
    assert source.count() == len(people)
    assert list(source.ids()) == [row.custom_id for row in expected]


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", lambda raw: pa.compress(raw, "zstd", asbytes=True))],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_compressed_file_is_read_as_its_name_says(tmp_path: Path, kind: str, ending: str, pack: Any) -> None:
    people = [(f"name {i}", "x" * 50) for i in range(100)]
    path = written(tmp_path / f"my.people.{kind.upper()}{ending}", pack(ENCODERS[kind](people)))
    assert [row.prompt for row in opened(path, prompt="{name}").rows()] == [name for name, _ in people]


def test_a_byte_order_mark_line_ends_and_blank_lines_are_no_data(tmp_path: Path) -> None:
    table = written(tmp_path / "a.csv", b"\xef\xbb\xbfprompt,custom_id\r\n\r\nHi,a\r\n\nHo,b")
    assert list(opened(table).rows()) == [Row("a", prompt="Hi"), Row("b", prompt="Ho")]
    lines = written(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"prompt":"Hi"}\r\n \n\n{"prompt":"Ho"}')
    assert list(opened(lines).rows()) == [Row("row-1", prompt="Hi"), Row("row-2", prompt="Ho")]
    for path in (table, lines):
        assert opened(path).count() == 2


def test_a_bad_csv_line_is_a_row_with_an_error_between_good_ones(tmp_path: Path) -> None:
    lines = [
        b"custom_id,prompt",
        b"a,Hi",
        b"b",
        b"c,Hi,Ho",
        b"d,\xff",
        b'e,"Hi"o',
        b"row-2,Hi",
        b'f,"Hi\n,\nHo"',
        b'g,"Hi',
    ]
    source = opened(written(tmp_path / "a.csv", b"\n".join(lines)))
    found = [(row.custom_id, row.prompt, row.error) for row in source.rows()]
    assert found == [
        ("a", "Hi", None),
        ("row-2-unreadable", None, "1 fields, where the header has 2"),
        ("row-3-unreadable", None, "3 fields, where the header has 2"),
        ("row-4-unreadable", None, "the line is not UTF-8"),
        ("row-5-unreadable", None, "',' expected after '\"'"),
        ("row-2", "Hi", None),
        ("f", "Hi\n,\nHo", None),
        ("row-8-unreadable", None, "unexpected end of data"),
    ]
    assert source.count() == len(found)
    assert list(source.ids()) == [custom_id for custom_id, _, _ in found]
    assert [row.custom_id for row in source.rows(3, 6)] == [custom_id for custom_id, _, _ in found[3:6]]
    check_ids(source)


def test_a_bad_json_line_is_a_row_with_an_error_between_good_ones(tmp_path: Path) -> None:
    lines = [
        b'{"custom_id": 1, "word": "Hi"}',
        b'{"custom_id": "b", "word": ',
        b'["c"]',
        b'{"custom_id": "d"}',
        b'{"custom_id": "e", "word": "\xff"}',
        b'{"word": "\\ud800"}',
        b"[" * 100_000,
        b'{"word": null}',
    ]
    source = opened(written(tmp_path / "a.jsonl", b"\n".join(lines)), prompt="Say {word}")
    rows = list(source.rows())
    bad = [f"row-{n}-unreadable" for n in range(9)]
    assert [row.custom_id for row in rows] == ["1", bad[2], bad[3], "d", bad[5], bad[6], bad[7], "row-8"]
    assert [row.prompt for row in rows if row.error is None] == ["Say Hi", "Say "]
    assert [row.error for row in rows][3] == "no column 'word'; the row has 'custom_id'"
    assert source.count() == len(rows)
    assert list(source.ids()) == [row.custom_id for row in rows]


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    limit = csv.field_size_limit()
    monkeypatch.setattr(sources, "LONGEST_LINE", 64)
    yield
    csv.field_size_limit(limit)


@pytest.mark.usefixtures("short_lines")
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_endless_line_takes_no_more_memory_than_a_bound_and_one_row(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"csv": b"x%d\n", "jsonl": b'{"prompt": "x%d"}\n'}[kind]
    header = b"prompt\n" if kind == "csv" else b""
    asked: list[int] = []

    class Sized(io.BufferedReader):
        def readline(self, size: int | None = -1, /) -> bytes:
            asked.append(size or 0)
            return super().readline(size)

    monkeypatch.setattr(io, "BufferedReader", Sized)
    source = opened(written(tmp_path / f"a.{kind}", header + good % 1 + b"y" * 1000 + b"\n" + good % 2))
    assert [row.prompt for row in source.rows()] == ["x1", None, "x2"]
    assert "longer than" in [row.error or "" for row in source.rows()][1]
    assert set(asked) == {64}


@pytest.mark.usefixtures("short_lines")
def test_an_open_quote_swallows_no_more_than_the_bound(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b'prompt\nHi\n"' + b"y\n" * 100 + b"Ho\n")
    rows = list(opened(path).rows())
    assert [row.prompt for row in (rows[0], rows[-1])] == ["Hi", "Ho"]
    assert rows[1].error == "field larger than field limit (64)"
    assert len(rows) > 60


def test_types_of_parquet_become_text_and_bad_text_spoils_only_its_row(tmp_path: Path) -> None:
    # Bytes that are no text in a column of text, as careless writers leave them.
    _, *buffers = pa.array([b"Hi", b"\xff", b""]).buffers()
    text: Any = pa.StringArray
    table = pa.table(
        {
            "custom_id": pa.array([10, 11, None], pa.int64()),
            "word": text.from_buffers(3, *buffers),
            "number": [1.0, 2.5, None],
            "length": [5, None, 7],
        }
    )
    pa_parquet.write_table(table, tmp_path / "a.parquet", store_schema=False)
    source = opened(tmp_path / "a.parquet", prompt="{word}:{number}", length_column="length")
    rows = list(source.rows())
    assert [row.custom_id for row in rows] == ["10", "11", "row-3"] == list(source.ids())
    assert [row.prompt for row in rows] == ["Hi:1.0", None, ":"]
    assert [row.expected_tokens for row in rows] == [5, 0, 7]
    assert "utf-8" in (rows[1].error or "")


def test_chats_come_from_parquet_structs(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Brief.", "name": None}, {"role": "user", "content": "Hi", "name": "Ann"}]
    pa_parquet.write_table(pa.table({"messages": [chat]}), tmp_path / "a.parquet")
    [row] = opened(tmp_path / "a.parquet").rows()
    assert row.messages == ({"role": "system", "content": "Brief."}, chat[1])


def test_parquet_row_groups_and_columns_that_are_not_needed_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.parquet", as_parquet([(str(i), "x") for i in range(30)]))
    source = opened(path, prompt="{name}")
    asked: list[tuple[list[int], list[str]]] = []
    read = pa_parquet.ParquetFile.iter_batches

    def spy(self: Any, size: int, *, row_groups: list[int], columns: list[str], **more: Any) -> Any:
        asked.append((row_groups, columns))
        return read(self, size, row_groups=row_groups, columns=columns, **more)

    monkeypatch.setattr(pa_parquet.ParquetFile, "iter_batches", spy)
    assert [row.prompt for row in source.rows(14, 22)] == [str(i) for i in range(14, 22)]
    assert asked == [([2, 3], ["name"])]
    assert source.count() == 30
    assert len(asked) == 1


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
        ("a.csv", b"", {}, "^source: .*a.csv is empty"),
        ("a.csv", b"\xff\xfen\x00", {}, "^source: the first line .* UTF-8"),
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
    packed = gzip.compress(as_jsonl([(str(i * i), "x") for i in range(1000)]))
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
        source = opened(f"{web}/a.{kind}?signature=secret", prompt="{name}")
        assert [row.prompt for row in source.rows(990)] == [name for name, _ in people[990:]]
    with pytest.raises(BadSettings, match="^source: cannot read http.*/b.csv: ") as caught:
        opened(f"{web}/b.csv?signature=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("by_web", [False, True])
def test_a_file_that_changed_has_another_fingerprint(tmp_path: Path, web: str, by_web: bool) -> None:
    path = written(tmp_path / "a.csv", b"prompt\nHi\n")
    spec = JobSpec(source=f"{web}/a.csv" if by_web else str(path))
    before = fingerprint(spec)
    assert before == fingerprint(spec) != ""
    path.write_bytes(b"prompt\nHi there\n")
    assert fingerprint(spec) != before
    path.unlink()
    with pytest.raises(BadSettings, match="^source: cannot read"):
        fingerprint(spec)


# --- generators ---

CTR = {"ad": "A new phone", "platform": "tiktok", "size": 2 * BLOCK + 5, "seed": 7}


def generated(name: str, arguments: dict[str, Any]) -> Source:
    return open_source(JobSpec(generator=Generator(name=name, arguments=arguments)), folder_url="unused")


def test_the_installed_click_through_generator_gives_the_people_of_its_seed_from_any_row_on() -> None:
    source = generated("ctr", CTR)
    expected = render_rows(generate_profiles(2 * BLOCK + 5, 7), "A new phone", "tiktok")
    assert list(source.rows()) == expected
    for start, stop in [(0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK, None), (2 * BLOCK + 4, None), (9999, None), (5, 3)]:
        assert list(source.rows(start, stop)) == expected[start:stop]
    assert source.count() == len(expected)
    assert list(source.ids()) == [row.custom_id for row in expected]


def test_a_generator_makes_no_more_rows_than_are_asked_for() -> None:
    source = generated("ctr", {**CTR, "size": 10**12})
    assert source.count() == 10**12
    assert [row.custom_id for row in source.rows(10**10, 10**10 + 1)] == ["profile-10000000000"]


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("crt", {}, r"^generator.name: 'crt' is not installed here; these are: .*ctr"),
        ("ctr", {"size": 0}, "^generator.arguments: size: .*greater than 0"),
        ("ctr", {"size": "many"}, "^generator.arguments: size: .*integer"),
        ("ctr", {"sise": 3}, "^generator.arguments: sise: Unexpected keyword"),
        ("ctr", {"start": 3}, "^generator.arguments: 'start'"),
        ("ctr", {"platform": "radio"}, "^generator.arguments: .*'radio' is unknown"),
    ],
)
def test_a_generator_that_refuses_is_refused_at_once(name: str, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        generated(name, {**CTR, **changed})


def plain(size: int) -> Iterator[Row]:
    return (Row(str(i), prompt="x") for i in range(size))


def test_rows_before_the_start_of_a_plain_generator_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("plain", f"{__name__}:plain", generators.GENERATORS),
            EntryPoint("gone", "no.such:x", generators.GENERATORS),
        ]
    )
    monkeypatch.setattr(generators, "entry_points", lambda group: points.select(group=group))
    source = generated("plain", {"size": 10})
    assert [row.custom_id for row in source.rows(7, 9)] == ["7", "8"]
    assert source.count() == 10
    with pytest.raises(BadSettings, match="^generator.name: 'gone' cannot be loaded: No module"):
        generated("gone", {})
