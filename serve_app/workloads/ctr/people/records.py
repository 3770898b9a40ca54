"""Rows of CSV files with a header, JSON lines and Parquet, each with its place in the file.

A row that cannot be read is told by a text that says why, in its place: one bad line is no reason to lose a file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pa_parquet

from serve_app.errors import BadSettings

# Of one field of a CSV file, in characters: a missing quote must not make the rest of a file one value.
LONGEST_FIELD = 1 << 20

# A row's place ("line 7"), and its columns or why it cannot be read.
Record = tuple[str, dict[str, Any] | str]


def read_records(path: Path) -> tuple[tuple[str, ...], Iterator[Record]]:
    """The columns' names, and the rows in order. Raises BadSettings, and OSError or pyarrow.ArrowException."""
    match path.suffix.lower():
        case ".csv":
            return _csv(path)
        case ".jsonl" | ".ndjson":
            return _jsonl(path)
        case ".parquet" | ".pq":
            return _parquet(path)
    raise BadSettings(f"--profiles {path}: end the name with .csv, .jsonl or .parquet")


def _csv(path: Path) -> tuple[tuple[str, ...], Iterator[Record]]:
    records = _csv_records(path)
    place, header = next(records, ("line 1", "the file is empty"))
    if isinstance(header, str):
        raise BadSettings(f"--profiles {path}: {place} has no column names: {header}")
    if twice := [column for column in header if header.count(column) > 1]:
        raise BadSettings(f"--profiles {path} has two columns '{twice[0]}': rename one")
    return tuple(header), ((place, _with_names(header, record)) for place, record in records)


def _csv_records(path: Path) -> Iterator[tuple[str, list[str] | str]]:
    csv.field_size_limit(LONGEST_FIELD)
    # Bytes that are no text stay recognisable, so that only their own row is refused.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            place = f"line {reader.line_num + 1}"
            try:
                record: list[str] | str = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                record = str(error)
            if record:
                yield place, record


def _with_names(header: list[str], record: list[str] | str) -> dict[str, Any] | str:
    if isinstance(record, str):
        return record
    if len(record) != len(header):
        return f"{len(record)} fields, where the header has {len(header)}"
    try:
        "".join(record).encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return dict(zip(header, record, strict=True))


def _jsonl(path: Path) -> tuple[tuple[str, ...], Iterator[Record]]:
    # All of them first: what columns there are, only all rows together know.
    records = list(_jsonl_records(path))
    names = dict.fromkeys(name for _, record in records if isinstance(record, dict) for name in record)
    return tuple(names), iter(records)


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


def _parquet(path: Path) -> tuple[tuple[str, ...], Iterator[Record]]:
    return tuple(pa_parquet.read_schema(path).names), _parquet_records(path)


def _parquet_records(path: Path) -> Iterator[Record]:
    number = 0
    with pa_parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(use_threads=False):
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", record
