"""Rows of a Parquet file, batch by batch."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from serve_app.driver.sources.files import READ_BUFFER, SourceFile, located, reading
from serve_app.driver.sources.template import IDS_SEEN, Input, RowMaker
from serve_app.schema import Row

# Rows decoded together: few, since a row may be a long document, which its file may hold once for all rows.
BATCH_ROWS = 64


class ParquetRows:
    """Reads only the columns that the job needs, and no row group before `start`."""

    def __init__(self, file: SourceFile, maker: RowMaker) -> None:
        self._file = file
        self._maker = maker
        with self._open() as parquet:
            metadata = parquet.metadata
            names = parquet.schema_arrow.names
            sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            # Number of each row group's first row, and of all rows.
            self._begins = list(accumulate(sizes, initial=0))
        ids = [name for name in names if name.casefold() == "id"]
        maker.find_ids(names, (values for _, values in self._values(ids, 0, IDS_SEEN)))
        self._columns = maker.check(names, file.name)
        self._names = names

    @contextmanager
    def _open(self) -> Iterator[pa_parquet.ParquetFile]:
        with reading(self._file.url, self._file.name):
            filesystem, path = located(self._file.url, self._file.reach)
            # Read pages as needed: the default keeps all row groups in memory.
            with pa_parquet.ParquetFile(
                path, filesystem=filesystem, pre_buffer=False, buffer_size=READ_BUFFER
            ) as parquet:
                yield parquet

    def _values(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, the columns' values) of rows [start, stop)."""
        stop = self.count() if stop is None else min(stop, self.count())
        if start >= stop:
            return
        first, last = bisect_right(self._begins, start) - 1, bisect_left(self._begins, stop)
        number = self._begins[first]
        with self._open() as parquet:
            groups = list(range(first, last))
            # The driver shares its processor.
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(columns), use_threads=False):
                skip, number = max(0, start - number), number + batch.num_rows
                wanted = batch.slice(skip, batch.num_rows - skip - max(0, number - stop))
                yield from enumerate(_to_rows(wanted), number - batch.num_rows + skip)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        return (self._maker.row(number, values) for number, values in self._values(self._columns, start, stop))

    def inputs(self) -> Iterator[Input]:
        return (Input(values, self._maker.row(number, values)) for number, values in self._values(self._names))

    def ids(self) -> Iterator[str]:
        columns = [column for column in self._columns if column == self._maker.id_column]
        return (self._maker.custom_id(number, values) for number, values in self._values(columns))

    def count(self) -> int:
        return self._begins[-1]


def _to_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # as bytes: `template.as_text` then refuses only the bad row
        text = (pa.string(), pa.large_string())
        fields = [field.with_type(pa.binary()) if field.type in text else field for field in batch.schema]
        return batch.cast(pa.schema(fields)).to_pylist()
