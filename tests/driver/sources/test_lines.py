"""CSV and JSON lines that are not as they should be."""

import io
from pathlib import Path

import pytest

from serve_app.driver.sources.source import check_ids
from tests.driver.sources.kit import opened, written


def test_a_bad_csv_line_is_a_row_with_an_error_between_good_ones(tmp_path: Path) -> None:
    lines = [
        b"custom_id,prompt",
        b"a,Hi",
        b"b",
        b"c,Hi,Ho",
        b"d,\x81",
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
