"""Excel and LibreOffice workbooks, read by calamine."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from serve_app.errors import BadSettings
from serve_app.tables.header import Header, Numbered, find_header

if TYPE_CHECKING:
    from python_calamine import CalamineSheet

# Rows searched for the header.
FIRST_ROWS = 500
# Excel's own limit. Empty rows before the first cell are gone through one by one.
MOST_ROWS = 1 << 20
# Of reading a workbook, in a process of its own.
MOST_MEMORY, MOST_SECONDS = 2 << 30, 120.0
# SHA-256 of contents that passed: a job reads its workbook many times.
_tried: deque[bytes] = deque(maxlen=1024)
# What is no workbook is told by the reading that follows.
TRIAL = """
import io, resource, sys
from python_calamine import CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum
content = sys.stdin.buffer.read()
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    book = CalamineWorkbook.from_filelike(io.BytesIO(content))
    shown = [sheet for sheet in book.sheets_metadata if sheet.visible == SheetVisibleEnum.Visible]
    sheets = [book.get_sheet_by_name(sheet.name) for sheet in shown if sheet.typ == SheetTypeEnum.WorkSheet]
except MemoryError:
    raise
except Exception:
    pass
"""


class WorkbookTable:
    """The first visible sheet with cells. `read` gives the file's bytes in each pass.

    Cells are text, as in CSV: whole numbers without a point, dates as 2027-01-31, true and false. Raises BadSettings,
    without the file's name.
    """

    delimiter = ""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        sheet, self._others = _open(read())
        self._name = sheet.name
        self._header: Header = find_header(list(islice(_records(sheet), FIRST_ROWS)))

    @property
    def columns(self) -> tuple[str, ...]:
        """See `table.Table`."""
        return self._header.names

    @property
    def read_as(self) -> str:
        """See `table.Table`."""
        return f"sheet '{self._name}'"

    @property
    def notes(self) -> tuple[str, ...]:
        """See `table.Table`."""
        others = ", ".join(f"'{name}'" for name in self._others)
        return (*self._header.notes, *([f"other sheets are left out: {others}"] if others else []))

    def records(self) -> Iterator[Numbered]:
        """See `table.Table`."""
        sheet, _ = _open(self._read())
        yield from islice(_records(sheet), self._header.skipped + 1, None)

    def cells(self, record: list[str] | str) -> list[str] | str:
        """See `table.Table`."""
        return record if isinstance(record, str) else self._header.cells(record)


def _try(content: bytes) -> None:
    """Raise BadSettings for a workbook that ends a process: one far cell makes calamine ask for half a terabyte.

    calamine keeps a rectangle of cells, and memory that it does not get ends its process.
    """
    if (digest := hashlib.sha256(content).digest()) in _tried:
        return
    command = [sys.executable, "-I", "-c", TRIAL, str(MOST_MEMORY)]
    try:
        trial = subprocess.run(command, input=content, capture_output=True, timeout=MOST_SECONDS, check=False)
        ended = trial.returncode
    except subprocess.TimeoutExpired:
        ended = 1
    if ended:
        raise BadSettings(
            f"needs more than {MOST_MEMORY >> 30} GiB of memory or {MOST_SECONDS:g} s to read, or has a cell far from "
            "the others: save it as CSV UTF-8 or Parquet"
        )
    _tried.append(digest)


def _open(content: bytes) -> tuple[CalamineSheet, list[str]]:
    """The sheet, and names of others with cells."""
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError, SheetTypeEnum, SheetVisibleEnum

    _try(content)
    try:
        book = CalamineWorkbook.from_filelike(io.BytesIO(content))
        sheets = [
            book.get_sheet_by_name(sheet.name)
            for sheet in book.sheets_metadata
            if sheet.typ == SheetTypeEnum.WorkSheet and sheet.visible == SheetVisibleEnum.Visible
        ]
    except PasswordError as error:
        raise BadSettings("has a password: save it without one, or as CSV UTF-8") from error
    except (CalamineError, OSError, ValueError) as error:
        raise BadSettings(f"is no workbook that can be read ({error}): save it as .xlsx, or as CSV UTF-8") from error
    filled = [sheet for sheet in sheets if sheet.height]
    for sheet in filled:
        if sheet.end and sheet.end[0] >= MOST_ROWS:
            raise BadSettings(f"sheet '{sheet.name}' has a cell below row {MOST_ROWS:,}, where no sheet has any")
    if not filled:
        raise BadSettings("line 1 has no column names: the workbook has no cells")
    return filled[0], [sheet.name for sheet in filled[1:]]


def _records(sheet: CalamineSheet) -> Iterator[Numbered]:
    first = sheet.start[0] if sheet.start else 0
    for number, row in enumerate(sheet.iter_rows(), first + 1):
        if any(cells := [_text(value) for value in row]):
            yield number, cells


def _text(value: Any) -> str:
    match value:
        case str():
            return value.strip()
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case datetime():
            return value.date().isoformat() if value.time() == datetime.min.time() else value.isoformat(" ")
        case date():
            return value.isoformat()
        case timedelta() | int() | float():
            return str(value)
    return str(value)
