"""A table of named columns, reread in each pass: delimited text or a workbook.

An unreadable row becomes a text with the reason, in its place.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

from serve_app.tables.dialect import sniff
from serve_app.tables.encoding import detect, is_text, is_utf8
from serve_app.tables.header import Numbered
from serve_app.tables.lines import bounded_lines
from serve_app.tables.workbook import WorkbookTable

DELIMITED = (".csv", ".tsv", ".tab", ".txt")
WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
# Sampled to detect encoding, dialect and header: bytes and lines.
SAMPLE, SAMPLE_LINES = 1 << 20, 1000

Open = Callable[[], AbstractContextManager[BinaryIO]]


class Table(Protocol):
    """`columns` are names as in the header, maybe with duplicates."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def delimiter(self) -> str:
        """ "" for a workbook."""

    @property
    def read_as(self) -> str:
        """As in "`;`, cp1252". Complete after all rows."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out."""

    def records(self) -> Iterator[Numbered]:
        """The line or row of each record, from 1, and the undecoded record."""

    def cells(self, record: list[str] | str) -> list[str] | str:
        """The values of `columns`, or why the record has none."""


def read_table(path: Path) -> Table:
    """The table in a local file. Raises BadSettings, without the file's name, and OSError."""
    if path.suffix.lower() in WORKBOOKS:
        return WorkbookTable(path.read_bytes)
    return DelimitedTable(lambda: path.open("rb"))


class DelimitedTable:
    """CSV and similar text. `open_file` reopens the file; raises BadSettings, without the file's name."""

    def __init__(self, open_file: Open) -> None:
        self._open = open_file
        with open_file() as file:
            sample = file.read(SAMPLE)
        whole = len(sample) < SAMPLE
        self._encoding = detect(sample, whole=whole)
        lines = list(islice(bounded_lines(self._encoding.recoded(io.BytesIO(sample))), SAMPLE_LINES))
        complete = lines if whole or len(lines) < 2 else lines[:-1]
        self._dialect, self._header = sniff([self._encoding.text(line) for line in complete])
        # Whether an ASCII beginning was followed by cp1252.
        self._western = False

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Table`."""
        return self._header.names

    @property
    def delimiter(self) -> str:
        """See `Table`."""
        return self._dialect.delimiter

    @property
    def read_as(self) -> str:
        """See `Table`."""
        return f"{self._dialect.shown}, {'cp1252' if self._western else self._encoding.name}"

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Table`."""
        return self._header.notes

    def records(self) -> Iterator[Numbered]:
        """See `Table`."""
        with self._open() as file:
            lines = map(self._text, bounded_lines(self._encoding.recoded(file)))
            yield from islice(self._dialect.records(lines), self._header.skipped + 1, None)

    def _text(self, line: bytes) -> str:
        if self._encoding.fallback and not line.isascii() and not is_utf8(line):
            self._western = True
        return self._encoding.text(line)

    def cells(self, record: list[str] | str) -> list[str] | str:
        """See `Table`."""
        if isinstance(record, str):
            return record
        found = self._header.cells(record)
        return found if isinstance(found, str) or is_text("".join(found)) else f"the line is not {self._encoding.name}"
