"""Rows of tables, JSON lines and Parquet with their places. A text with the reason replaces an unreadable row, so that
one bad line does not lose a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pa_parquet

from serve_app.errors import BadSettings
from serve_app.tables.numbers import plain_numbers
from serve_app.tables.table import DELIMITED, WORKBOOKS, Table, read_table
from serve_app.workloads.ctr.people.values import is_missing

# A row's place ("line 7"), and columns or error.
Record = tuple[str, dict[str, Any] | str]


@dataclass(frozen=True)
class Records:
    """A file's columns and rows, in order, and `read_as`, how it was read. `delimiter` is None for typed values, "" in
    a workbook."""

    columns: tuple[str, ...]
    rows: list[Record]
    read_as: str
    delimiter: str | None = None
    notes: tuple[str, ...] = ()

    def with_plain_numbers(self, names: list[str]) -> Records:
        """Rewrites decimal commas and thousands in text columns; see `tables.numbers`."""
        if self.delimiter is None:
            return self
        good = [row for _, row in self.rows if isinstance(row, dict)]
        columns = {name: [value.strip() for row in good if not is_missing(value := row[name])] for name in names}
        rewrites = plain_numbers(columns, self.delimiter)
        for row in good:
            for name, rewrite in rewrites.items():
                if not is_missing(row[name]):
                    row[name] = rewrite(row[name].strip())
        return self


def read_records(path: Path) -> Records:
    """All rows. Raises BadSettings naming the file, OSError or pyarrow.ArrowException."""
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _jsonl(path)
        case ".parquet" | ".pq":
            try:
                columns = tuple(pa_parquet.read_schema(path).names)
                return Records(columns, list(_parquet_records(path)), "Parquet")
            except (OverflowError, UnicodeDecodeError) as error:  # a date beyond Python's, text that is none
                raise BadSettings(f"--profiles {path} has a value that cannot be read: {error}") from error
        case ending if ending in (*DELIMITED, *WORKBOOKS):
            return _tabular(path)
    endings = ", ".join([*DELIMITED, *WORKBOOKS, ".jsonl"])
    raise BadSettings(f"--profiles {path}: end the name with {endings} or .parquet")


def _tabular(path: Path) -> Records:
    try:
        table = read_table(path)
        rows = list(_table_records(table))
    except (BadSettings, UnicodeDecodeError) as error:
        raise BadSettings(f"--profiles {path}: {error}") from error
    if twice := [column for column in table.columns if table.columns.count(column) > 1]:
        raise BadSettings(f"--profiles {path} has two columns '{twice[0]}': rename one")
    return Records(table.columns, rows, table.read_as, table.delimiter, table.notes)


def _table_records(table: Table) -> Iterator[Record]:
    unit = "line" if table.delimiter else "row"
    for number, record in table.records():
        cells = table.cells(record)
        yield f"{unit} {number}", cells if isinstance(cells, str) else dict(zip(table.columns, cells, strict=True))


def _jsonl(path: Path) -> Records:
    # Only all rows together tell the columns.
    records = list(_jsonl_records(path))
    names = dict.fromkeys(name for _, record in records if isinstance(record, dict) for name in record)
    return Records(tuple(names), records, "JSON lines")


def _jsonl_records(path: Path) -> Iterator[Record]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"is no JSON object: {error}"


def _parquet_records(path: Path) -> Iterator[Record]:
    number = 0
    with pa_parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(use_threads=False):
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", record
