import bz2
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.schema import Row
from tests.driver.sources.kit import ENCODERS, opened, written

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PEOPLE = st.lists(st.tuples(TEXT, TEXT), max_size=30)


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
