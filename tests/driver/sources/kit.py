"""Rows written as CSV, JSON lines and Parquet."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from serve_app.addresses import PUBLIC, Reach
from serve_app.driver.sources.source import Source, open_source
from serve_app.spec import JobSpec


def opened(path: Path | str, *, reach: Reach = PUBLIC, **spec: Any) -> Source:
    return open_source(JobSpec(source=str(path), **spec), folder_url="unused", reach=reach)


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
