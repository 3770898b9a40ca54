"""Finds a table's header line, below a title if there is one.

Works on records of delimited text and workbooks alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from serve_app.errors import BadSettings
from serve_app.tables.encoding import is_text

TITLE_ROWS = 10
_NAME = re.compile(r"\w+")

Record = list[str]
# Line from 1, and the record or why it is unreadable.
Numbered = tuple[int, Record | str]


@dataclass(frozen=True)
class Header:
    """`names` are the column names at `places`; other columns have none. `width` reaches to the last name, `written`
    counts all cells.

    `skipped` records precede the header in line `line`. `index`: the first column has values without a name, as pandas
    and R write row numbers.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    width: int
    line: int
    skipped: int = 0
    index: bool = False
    written: int = 0

    def fits(self, record: Record) -> bool:
        """Whether the record has exactly the header's columns."""
        return len(record) == self.width or (len(record) > self.width and not any(map(str.strip, record[self.width :])))

    def cells(self, record: Record) -> Record | str:
        """The named columns' values, or why there are none."""
        if not self.fits(record):
            return f"{len(record)} fields, where the header has {self.width}"
        if len(self.places) == self.width:
            return record if len(record) == self.width else record[: self.width]
        if filled := [place for place in self._unnamed if record[place].strip()]:
            return f"'{record[filled[0]]}' is in column {filled[0] + 1}, which has no name"
        return [record[place] for place in self.places]

    @cached_property
    def _unnamed(self) -> list[int]:
        return sorted(set(range(self.index, self.width)).difference(self.places))

    @property
    def notes(self) -> tuple[str, ...]:
        found = []
        if self.skipped:
            found.append(f"the header is line {self.line}, below a title")
        if self.index:
            found.append("the first column has no name: taken as numbers of the rows, and left out")
        return tuple(found)


def find_header(records: Sequence[Numbered]) -> Header:
    """The header among a table's first records.

    Raises BadSettings, without the file's name, if there is none.
    """
    if not records:
        raise BadSettings("line 1 has no column names: the file is empty")
    line, first = records[0]
    if isinstance(first, list) and not is_text("".join(first)):
        first = "the line is not UTF-8"
    if isinstance(first, str):
        raise BadSettings(f"line {line} has no column names: {first}")
    rows = [record for _, record in records[1:] if not isinstance(record, str)]
    gaps = _gaps(first, rows)
    if not gaps and not _is_title(first, rows):
        return _header(line, first)
    if gaps == [0] and not _is_title(first, rows):
        return _header(line, first, index=True)
    for skipped, (below, record) in enumerate(records[1:TITLE_ROWS], 1):
        if not isinstance(record, str) and _is_header(record, first, records[skipped + 1 :]):
            return _header(below, record, skipped)
    if gaps:
        columns = ", ".join(str(place + 1) for place in gaps[:5])
        raise BadSettings(
            f"line {line} has no name for column {columns}, which has values: give each column one name, in one line, "
            "without merged cells"
        )
    return _header(line, first)


def _header(line: int, record: Record, skipped: int = 0, *, index: bool = False) -> Header:
    names = _names(record)
    places = tuple(place for place, name in enumerate(names) if name)
    if not places:
        raise BadSettings(f"line {line} has no column names: all its cells are empty")
    return Header(tuple(names[place] for place in places), places, places[-1] + 1, line, skipped, index, len(record))


def _names(record: Record) -> list[str]:
    """The names, "" for none, including pandas' names for unnamed columns."""
    names = [" ".join(name.split()) for name in record]
    return ["", *names[1:]] if names[0] == "Unnamed: 0" else names


def _gaps(header: Record, rows: Sequence[Record]) -> list[int]:
    """Nameless columns with values in most rows."""
    filled = Counter(place for row in rows for place, cell in enumerate(row[: len(header)]) if cell.strip())
    return [place for place, name in enumerate(_names(header)) if not name and filled[place] * 2 > len(rows)]


def _is_title(record: Record, rows: Sequence[Record]) -> bool:
    """One text cell above wider rows: a sentence, or in a spreadsheet any text."""
    cells = [cell for cell in record if cell.strip()]
    if len(cells) != 1 or not rows:
        return False
    several = sum(sum(map(bool, row)) > 1 for row in rows) * 2 > len(rows)
    padded = len(record) > 1
    return several and (padded or not _NAME.fullmatch(cells[0].strip()))


def _is_header(record: Record, first: Record, below: Sequence[Numbered]) -> bool:
    """Whether a record below the first names all the rows' columns with text, and the first names few."""
    rows = [row for _, row in below if not isinstance(row, str)]
    if not rows or _gaps(record, rows):
        return False
    cells = [cell.strip() for cell in record if cell.strip()]
    same = sum(len(row) == len(record) for row in rows) >= 0.9 * len(rows)
    few = sum(map(bool, map(str.strip, first))) * 2 <= len(cells)
    return len(cells) > 1 and same and few and not any(cell.lstrip("-+")[:1].isdigit() for cell in cells)
