"""What a job reads its rows from, in any form, and the check that ids are unique."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from serve_app.addresses import PUBLIC, Reach
from serve_app.driver.sources.files import SourceFile
from serve_app.driver.sources.generated import Generated
from serve_app.driver.sources.lines import JsonlRows, TableRows
from serve_app.driver.sources.parquet import ParquetRows
from serve_app.driver.sources.repeats import find_repeats
from serve_app.driver.sources.requests import RequestRows
from serve_app.driver.sources.template import Input, RowMaker
from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.spec import JobSpec


class Source(Protocol):
    """A population. Row numbers begin with 0 and are the same in every pass.

    A row that cannot be read is a `Row` with an `error`, never an exception.
    """

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows [start, stop), rendered, in order. Raises BadSettings if reading cannot go on."""

    def inputs(self) -> Iterator[Input]:
        """Every row with all columns of the data, in order; no columns where it has none, or cannot be read."""

    def ids(self) -> Iterator[str]:
        """The custom_id of every row, in order, without rendering."""

    def count(self) -> int:
        """Number of rows: from Parquet's metadata, else by a pass over the data."""


def open_source(spec: JobSpec, *, folder_url: str, reach: Reach = PUBLIC) -> Source:
    """The population of a job whose folder is `folder_url`. Web servers are asked only within `reach`.

    Raises BadSettings naming the field for a missing source, an unknown format, a missing column, a malformed template,
    or arguments that the generator refuses.
    """
    if spec.generator is not None:
        return Generated(spec.generator)
    maker = RowMaker(spec)
    file = SourceFile.of(spec, folder_url, reach)
    if spec.endpoint is not None:
        return _requests(file, spec.endpoint)
    match file.format:
        case "csv" | "xlsx":
            return TableRows(file, maker)
        case "jsonl":
            return JsonlRows(file, maker)
        case "parquet":
            return ParquetRows(file, maker)


def _requests(file: SourceFile, endpoint: str) -> RequestRows:
    if file.format != "jsonl":
        raise BadSettings(f"requests are JSON lines, and {file.name} is {file.format}", field="format")
    file.check()
    return RequestRows(file.lines, endpoint)


def check_size(rows: int | None, most: int) -> None:
    """Raise BadSettings for a population of more than `most` rows."""
    if rows is not None and rows > most:
        raise BadSettings(
            f"the population has {rows:,} rows, and a job here at most {most:,} (the driver's `max_rows`): "
            "make several jobs"
        )


def check_ids(source: Source) -> None:
    """Raise BadSettings naming the first custom_id that is given twice, and its rows (from 1)."""
    _, repeats = find_repeats(source.ids)
    if repeat := next(repeats, None):
        raise BadSettings(
            f"custom_id '{repeat.custom_id}' is given twice, in rows {repeat.first + 1} and {repeat.row + 1}: "
            "make ids unique, or name another id_column"
        )
