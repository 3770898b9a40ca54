"""Rows of tables and JSON lines, read as they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from serve_app.driver.sources.files import SourceFile
from serve_app.driver.sources.template import Input, RowMaker, unreadable, unreadable_id
from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.tables.lines import LONGEST_LINE, bounded_lines
from serve_app.tables.table import DelimitedTable
from serve_app.tables.workbook import WorkbookTable

TOO_LONG = f"the line is longer than {LONGEST_LINE} bytes"


class _Streamed(ABC):
    """A file that is read from its beginning: rows before `start` are skipped, not decoded."""

    def __init__(self, file: SourceFile, maker: RowMaker) -> None:
        self._file = file
        self._maker = maker

    @abstractmethod
    def _records(self) -> Iterator[Any]:
        """One a row, not decoded yet."""

    @abstractmethod
    def _values(self, record: Any) -> dict[str, Any] | str:
        """The record's columns, or why it cannot be read."""

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        for number, record in enumerate(islice(self._records(), start, stop), start):
            values = self._values(record)
            yield unreadable(number, values) if isinstance(values, str) else self._maker.row(number, values)

    def inputs(self) -> Iterator[Input]:
        for number, record in enumerate(self._records()):
            values = self._values(record)
            if isinstance(values, str):
                yield Input({}, unreadable(number, values))
            else:
                yield Input(self._columns_of(record, values), self._maker.row(number, values))

    def _columns_of(self, record: Any, values: dict[str, Any]) -> dict[str, Any]:
        """All of the record's columns, where `values` are those that the job needs."""
        return values

    def ids(self) -> Iterator[str]:
        for number, record in enumerate(self._records()):
            values = self._values(record)
            yield unreadable_id(number) if isinstance(values, str) else self._maker.custom_id(number, values)

    def count(self) -> int:
        return sum(1 for _ in self._records())


class TableRows(_Streamed):
    """Delimited text or a workbook, with a header line; every value is text. Blank lines are no rows."""

    def __init__(self, file: SourceFile, maker: RowMaker) -> None:
        super().__init__(file, maker)
        try:
            self._table = WorkbookTable(file.content) if file.format == "xlsx" else DelimitedTable(file.stream)
        except BadSettings as error:
            if error.field:
                raise
            raise BadSettings(f"{file.name}: {error}", field="source") from error
        header = self._table.columns
        maker.find_ids(header, (v for v in map(self._named, self._records()) if v is not None))
        needed = maker.check(header, file.name)
        if twice := {column for column in needed if needed.count(column) > 1}:
            raise BadSettings(f"{file.name} has more than one column '{min(twice)}': rename one", field="source")
        self._columns = [(header.index(column), column) for column in needed]

    def _named(self, record: Any) -> dict[str, Any] | None:
        cells = self._table.cells(record)
        return None if isinstance(cells, str) else dict(zip(self._table.columns, cells, strict=True))

    def _records(self) -> Iterator[list[str] | str]:
        return (record for _, record in self._table.records())

    def _columns_of(self, record: list[str] | str, values: dict[str, Any]) -> dict[str, Any]:
        return self._named(record) or values

    def _values(self, record: list[str] | str) -> dict[str, Any] | str:
        cells = self._table.cells(record)
        return cells if isinstance(cells, str) else {column: cells[i] for i, column in self._columns}


class JsonlRows(_Streamed):
    """A JSON object a line, UTF-8. Blank lines are no rows. Columns may differ from row to row."""

    def __init__(self, file: SourceFile, maker: RowMaker) -> None:
        super().__init__(file, maker)
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode
        file.check()
        if (first := next(self._good(), None)) is not None:
            maker.find_ids(tuple(first), self._good())

    def _good(self) -> Iterator[dict[str, Any]]:
        return (values for values in map(self._values, self._records()) if not isinstance(values, str))

    def _records(self) -> Iterator[bytes]:
        with self._file.stream() as file:
            for line in bounded_lines(file):
                if not line.isspace():
                    yield line

    def _values(self, record: bytes) -> dict[str, Any] | str:
        if not record:
            return TOO_LONG
        try:
            return self._decode(record)
        except (ValueError, RecursionError) as error:
            return f"the line is no JSON object: {error}"
