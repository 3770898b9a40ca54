"""Parquet files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from tests.driver.sources.kit import as_parquet, opened, written


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
