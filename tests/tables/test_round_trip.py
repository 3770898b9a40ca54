"""Whatever is written by a writer of CSV comes back."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.tables import table as tables
from serve_app.tables.dialect import DELIMITERS
from serve_app.tables.lines import LONGEST_LINE
from serve_app.tables.table import DelimitedTable, read_table

WORDS = ["Köln", "Straße", "naïve", "São Paulo", "Ærø", "plain", "it’s", "50 €", "a;b", "a,b", "a|b"]
CELLS = st.sampled_from(WORDS) | st.text(st.characters(codec="cp1252", exclude_characters="\r"), max_size=8)
NAME = st.from_regex(r"[a-zä][a-z_ ]{0,8}[a-z]", fullmatch=True)


@st.composite
def grids(draw: st.DrawFn) -> list[list[str]]:
    names = draw(st.lists(NAME, min_size=2, max_size=5, unique_by=lambda name: " ".join(name.split())))
    return [names, *draw(st.lists(st.lists(CELLS, min_size=len(names), max_size=len(names)), max_size=12))]


def as_bytes(grid: list[list[str]], delimiter: str, encoding: str, end: str, quoting: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(grid)
    return text.getvalue().encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", DELIMITERS)
@settings(max_examples=25, deadline=None)
@given(
    grid=grids(), end=st.sampled_from(["\n", "\r\n", "\r"]), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
)
def test_every_delimiter_in_every_encoding_comes_back(
    delimiter: str,
    encoding: str,
    grid: list[list[str]],
    end: str,
    quoting: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if encoding.endswith(("le", "be")):
        grid = [["city", *grid[0][1:]], *grid[1:]]  # without a mark it is known by names of ASCII
    if end == "\r":  # of the others, line ends in cells would be some of the file's
        grid = [[cell.replace("\n", " ") for cell in row] for row in grid]
    if encoding == "cp1252":  # known by words that make sense in it
        plain = [[cell if cell in WORDS else cell.encode("ascii", "replace").decode() for cell in row] for row in grid]
        grid = [grid[0], *plain[1:]]
    path = tmp_path_factory.mktemp("grid") / "grid.csv"
    path.write_bytes(as_bytes(grid, delimiter, encoding, end, quoting))
    names = tuple(" ".join(name.split()) for name in grid[0])
    kept = [row for row in grid[1:] if any(map(str.strip, row)) or quoting == csv.QUOTE_ALL]
    table = read_table(path)
    assert table.columns == names
    assert table.delimiter == delimiter
    assert [table.cells(record) for _, record in table.records()] == kept


def test_a_file_longer_than_the_sample_that_turns_from_ascii_to_cp1252_is_read_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "SAMPLE", 100)
    lines = ["age;city", *["34;Bonn"] * 50, "35;Köln"]
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode("cp1252"))
    table = read_table(tmp_path / "a.csv")
    assert table.read_as == "`;`, UTF-8"
    assert [table.cells(record) for _, record in table.records()][-1] == ["35", "Köln"]
    assert table.read_as == "`;`, cp1252"
    (tmp_path / "b.csv").write_bytes("\n".join(lines).encode())
    table = read_table(tmp_path / "b.csv")
    assert [table.cells(record) for _, record in table.records()][-1] == ["35", "Köln"]
    assert table.read_as == "`;`, UTF-8"


def test_a_large_file_is_read_block_by_block() -> None:
    class Endless(io.RawIOBase):
        """UTF-16 rows without end; counts what was read."""

        read_bytes = 0

        def __init__(self) -> None:
            self.row, self.head = "34;Köln\n".encode("utf-16-le"), "age;city\n".encode("utf-16")

        def read(self, size: int = -1) -> bytes:
            Endless.read_bytes += size
            head, self.head = self.head, b""
            return head + self.row * ((size - len(head)) // len(self.row))

    table = DelimitedTable(Endless)  # type: ignore[arg-type]
    records = table.records()
    assert [table.cells(next(records)[1]) for _ in range(100_000)][-1] == ["34", "Köln"]
    assert Endless.read_bytes < 8 * tables.SAMPLE < LONGEST_LINE


def test_a_wrong_line_is_one_bad_row_in_any_dialect(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('age;city\n34;Köln\n35\n36;\n37;Ulm;x\n38;"Bonn"x\n39;Ulm\n'.encode())
    table = read_table(tmp_path / "a.csv")
    assert [(line, table.cells(record)) for line, record in table.records()] == [
        (2, ["34", "Köln"]),
        (3, "1 fields, where the header has 2"),
        (4, ["36", ""]),
        (5, "3 fields, where the header has 2"),
        (6, "';' expected after '\"'"),
        (7, ["39", "Ulm"]),
    ]


def test_a_value_without_a_column_name_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"age;;city\n34;;Ulm\n35;?;Ulm\n36;;Ulm\n37;;Ulm\n")
    table = read_table(tmp_path / "a.csv")
    assert [table.cells(record) for _, record in table.records()][:2] == [
        ["34", "Ulm"],
        "'?' is in column 2, which has no name",
    ]


def test_one_column_and_empty_ones_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"age;;\n34;;\n35\n;;\n36;\n")
    table = read_table(tmp_path / "a.csv")
    assert table.columns == ("age",)
    assert [table.cells(record) for _, record in table.records()] == [["34"], ["35"], ["36"]]


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("name,likes|dislikes\nAnn,a|b\nBob,c|d\n", ","),
        ("name;income, EUR\nAnn;1,5\nBob;2,5\n", ";"),
        ("id;comment\n1;hello, world\n2;a, b, c\n", ";"),
        ('"a;b",c\n1,2\n', ","),
        ("prompt\nHi, Bob\nHello; Al\n", ","),
        ("a;b\n1,5;2,5\n1,5;2,5\n", ";"),
    ],
)
def test_the_delimiter_is_the_one_by_which_rows_are_as_long_as_the_header(
    tmp_path: Path, text: str, delimiter: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert read_table(tmp_path / "a.csv").delimiter == delimiter
