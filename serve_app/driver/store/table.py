"""Outcomes as a Parquet table, a column a field, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa

from serve_app.schema import Outcome

# A reader has one row group in memory, and many may read at once. Whole responses can be large.
GROUP_ROWS, GROUP_BYTES = 16_384, 4 << 20
# Outcomes made from a table at once.
BATCH_ROWS, BATCH_BYTES = 1024, 1 << 20
_FIELDS: list[pa.Field[Any]] = [
    pa.field("custom_id", pa.string(), nullable=False),
    pa.field("content_hash", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("value", pa.string()),  # JSON
    pa.field("error", pa.string()),
    pa.field("attempts", pa.int32(), nullable=False),
    pa.field("replica", pa.string()),
    pa.field("model", pa.string(), nullable=False),
    pa.field("engine_version", pa.string()),
    pa.field("simulated", pa.bool_(), nullable=False),
    pa.field("prompt_tokens", pa.int64(), nullable=False),
    pa.field("cached_tokens", pa.int64(), nullable=False),
    pa.field("completion_tokens", pa.int64(), nullable=False),
    pa.field("latency_ms", pa.float64(), nullable=False),
    pa.field("finished_at", pa.string(), nullable=False),
    pa.field("reused_from", pa.string()),
]
SCHEMA = pa.schema(_FIELDS)


def to_table(outcomes: Sequence[Outcome]) -> pa.Table:
    """A row an outcome, columns as SCHEMA has them.

    Lone surrogates, which no encoding has a place for, become U+FFFD; numbers in `value` that JSON does not have
    (infinities, NaN) become null.
    """
    columns = []
    for field in SCHEMA:
        values = list(map(attrgetter(field.name), outcomes))
        if field.name == "value":
            values = [None if value is None else _value(value) for value in values]
        try:
            column = pa.array(values, field.type)
        except UnicodeEncodeError:
            column = pa.array([_text(value) for value in values], field.type)
        columns.append(column)
    return pa.table(columns, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Outcome]:
    """Inverse of `to_table`."""
    columns = {name: table[name].to_pylist() for name in SCHEMA.names}
    columns["value"] = [None if value is None else _decode(value) for value in columns["value"]]
    return list(map(Outcome, *columns.values()))


def read_outcomes(table: pa.Table) -> Iterator[Outcome]:
    for piece in pieces(table):
        yield from from_table(piece)


def pieces(table: pa.Table) -> Iterator[pa.Table]:
    """The table in pieces of at most BATCH_ROWS and about BATCH_BYTES."""
    rows = rows_within(table, BATCH_ROWS, BATCH_BYTES)
    return (table.slice(start, rows) for start in range(0, table.num_rows, rows))


def rows_within(table: pa.Table, most: int, most_bytes: int) -> int:
    """How many rows have at most so many bytes, as the table's are on average; at least one, at most `most`."""
    return max(1, min(most, most_bytes * table.num_rows // max(1, table.nbytes)))


def grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Neighbours together, up to GROUP_ROWS and GROUP_BYTES; none is cut: a row stays with those it was read with."""
    group: list[pa.Table] = []
    for table in tables:
        together = [*group, table]
        rows, size = sum(t.num_rows for t in together), sum(t.nbytes for t in together)
        if group and (rows > GROUP_ROWS or size > GROUP_BYTES):
            yield pa.concat_tables(group)
            group = []
        group.append(table)
    if group:
        yield pa.concat_tables(group)


_encode = msgspec.json.Encoder().encode
_decode: Callable[[str], dict[str, Any]] = msgspec.json.Decoder(dict[str, Any]).decode


def _value(value: dict[str, Any]) -> bytes:
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_text(value))


def _text(value: Any) -> Any:
    """The value without lone surrogates in its strings."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return value
