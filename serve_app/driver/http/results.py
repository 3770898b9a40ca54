"""Results as a stream of bytes: JSON lines, CSV or Parquet; outcomes in the order of commit, or beside their inputs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from serve_app.addresses import PUBLIC, Reach
from serve_app.driver.http.joined import JoinedResults
from serve_app.driver.store.store import JobStore
from serve_app.driver.store.table import SCHEMA, from_table, pieces
from serve_app.errors import BadSettings
from serve_app.schema import Outcome

MEDIA_TYPES = {"jsonl": "application/jsonl", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}

# How a formula begins in Excel, LibreOffice and Google Sheets; and what does so and is none.
FORMULA = re.compile(r"^[=+\-@\t\r]")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def stream_results(job: JobStore, form: str, *, after: int = 0) -> Iterator[bytes]:
    """All outcomes that are committed now, but the first `after`. Raises BadSettings for another format."""
    check_format(form)
    if form == "jsonl":
        return (b"".join(o.to_json() + b"\n" for o in some) for some in _blocks(job, after))
    return _columns(job, form, after)


def stream_joined(job: JobStore, form: str, reach: Reach = PUBLIC) -> Iterator[bytes]:
    """The rows of the data in its order, with its columns; see `joined.py`. Raises BadSettings."""
    check_format(form)
    joined = JoinedResults(job, reach)
    if form == "jsonl":
        return (b"".join(msgspec.json.encode(row) + b"\n" for row in some) for some in joined.rows())
    schema = joined.schema
    return _write(form, schema, (pa.Table.from_pylist(some, schema) for some in joined.rows()))


def check_format(form: str) -> None:
    """Raises BadSettings."""
    if form not in MEDIA_TYPES:
        raise BadSettings(f"'{form}' is unknown: use one of {', '.join(MEDIA_TYPES)}", field="format")


def _blocks(job: JobStore, after: int) -> Iterator[list[Outcome]]:
    return (from_table(piece) for table in job.tables(after=after) for piece in pieces(table))


def _columns(job: JobStore, form: str, after: int) -> Iterator[bytes]:
    spec = job.spec()
    values = value_fields(spec["labels"], requests=bool(spec.get("endpoint")))
    return _write(form, flat_schema(values), (flatten(table, values) for table in job.tables(after=after)))


def _write(form: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> Iterator[bytes]:
    sink = _Sink()
    target: Any = sink
    if form == "csv":
        writer: Any = pa.csv.CSVWriter(target, without_formulas(schema.empty_table()).schema)
    else:
        writer = pa.parquet.ParquetWriter(target, schema)
    with writer:
        for table in tables:
            for piece in pieces(table) if form == "csv" else (table,):
                writer.write_table(without_formulas(piece) if form == "csv" else piece)
                yield sink.take()
    yield sink.take()


def without_formulas(table: pa.Table) -> pa.Table:
    """The table with a ' before texts, and names of columns, that a spreadsheet would run as formulas.

    Numbers as text stay. See OWASP, CSV Injection.
    """
    names = [f"'{name}" if FORMULA.match(name) else name for name in table.column_names]
    return pa.table([_as_cells(column) for column in table.columns], names=names)


def _as_cells(column: Any) -> Any:
    if not pa.types.is_string(column.type):
        return column
    runs = pc.match_substring_regex(column, FORMULA.pattern)
    if not pc.any(runs).as_py():
        return column
    runs = pc.and_(runs, pc.invert(pc.match_substring_regex(column, NUMBER)))
    return pc.if_else(runs, pc.binary_join_element_wise("'", column, ""), column)


def value_fields(labels: Sequence[str], *, requests: bool = False) -> list[pa.Field[Any]]:
    """The columns that `value` becomes: a column a label and `mass`, the parts of a response, or text and reason."""
    if requests:  # `body` is JSON
        return [pa.field("status_code", pa.int32()), pa.field("request_id", pa.string()), pa.field("body", pa.string())]
    if labels:
        return [pa.field(name, pa.float64()) for name in (*(f"logprob_{label}" for label in labels), "mass")]
    return [pa.field("text", pa.string()), pa.field("finish_reason", pa.string())]


def flat_schema(values: list[pa.Field[Any]]) -> pa.Schema:
    """Columns of `flatten`."""
    fields: list[pa.Field[Any]] = []
    for field in SCHEMA:
        fields += values if field.name == "value" else [field]
    return pa.schema(fields)


def flatten(table: pa.Table, values: list[pa.Field[Any]]) -> pa.Table:
    """The store's table with the columns of `value` (see `value_fields`) in its place."""
    decoded = [msgspec.json.decode(value) if value else {} for value in table["value"].to_pylist()]
    columns: dict[str, Any] = {}
    for field in flat_schema(values):
        name = field.name
        if name in table.column_names:
            columns[name] = table[name]
        elif name.startswith("logprob_"):
            label = name.removeprefix("logprob_")
            columns[name] = pa.array([v.get("logprobs", {}).get(label) for v in decoded], field.type)
        elif name == "body":
            bodies = [v.get(name) for v in decoded]
            columns[name] = pa.array([b and msgspec.json.encode(b).decode() for b in bodies], field.type)
        else:
            columns[name] = pa.array([v.get(name) for v in decoded], field.type)
    return pa.table(columns, schema=flat_schema(values))


class _Sink(io.RawIOBase):
    """What a writer wrote since it was last taken."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._blocks.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """The bytes, and forget them."""
        data, self._blocks = b"".join(self._blocks), []
        return data
