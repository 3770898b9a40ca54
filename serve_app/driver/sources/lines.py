"""Rows of CSV and JSON lines, read as they come."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from serve_app.driver.sources import files
from serve_app.driver.sources.files import SourceFile, bounded_lines
from serve_app.driver.sources.template import RowMaker, unreadable, unreadable_id
from serve_app.errors import BadSettings
from serve_app.schema import Row

TOO_LONG = f"the line is longer than {files.LONGEST_LINE} bytes"


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

    def ids(self) -> Iterator[str]:
        for number, record in enumerate(self._records()):
            values = self._values(record)
            yield unreadable_id(number) if isinstance(values, str) else self._maker.custom_id(number, values)

    def count(self) -> int:
        return sum(1 for _ in self._records())


class CsvRows(_Streamed):
    """RFC 4180 with a header line; values are UTF-8 text. Blank lines are no rows."""

    def __init__(self, file: SourceFile, maker: RowMaker) -> None:
        super().__init__(file, maker)
        header = next(self._parsed(), None)
        if header is None:
            raise BadSettings(f"{file.name} is empty: a CSV file begins with a line of column names", field="source")
        if isinstance(problem := header if isinstance(header, str) else _not_utf8(header), str):
            raise BadSettings(f"the first line of {file.name} has no column names: {problem}", field="source")
        needed = maker.check(header, file.name)
        if twice := {column for column in needed if needed.count(column) > 1}:
            raise BadSettings(f"{file.name} has more than one column '{min(twice)}': rename one", field="source")
        self._width = len(header)
        self._columns = [(header.index(column), column) for column in needed]

    def _parsed(self) -> Iterator[list[str] | str]:
        # Global, and by default too small for documents.
        csv.field_size_limit(files.LONGEST_LINE)
        with self._file.stream() as file:
            # `map`, since it goes on after its function raised.
            reader = csv.reader(map(_csv_line, bounded_lines(file)), strict=True)
            while True:
                try:
                    if record := next(reader):
                        yield record
                except StopIteration:
                    return
                except csv.Error as error:
                    yield str(error)

    def _records(self) -> Iterator[list[str] | str]:
        return islice(self._parsed(), 1, None)

    def _values(self, record: list[str] | str) -> dict[str, Any] | str:
        if isinstance(record, str):
            return record
        if len(record) != self._width:
            return f"{len(record)} fields, where the header has {self._width}"
        return _not_utf8(record) or {column: record[i] for i, column in self._columns}


def _csv_line(line: bytes) -> str:
    if not line:
        raise csv.Error(TOO_LONG)
    # Bytes that are not UTF-8 stay recognisable, so that only their own row is refused.
    return line.decode("utf-8", "surrogateescape")


def _not_utf8(record: list[str]) -> str | None:
    try:
        "".join(record).encode()
    except UnicodeEncodeError:
        return "the line is not UTF-8"
    return None


class JsonlRows(_Streamed):
    """A JSON object a line, UTF-8. Blank lines are no rows. Columns may differ from row to row."""

    def __init__(self, file: SourceFile, maker: RowMaker) -> None:
        super().__init__(file, maker)
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode
        file.check()

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
