"""Local number formats: decimal commas, and thousands separated by points, commas, blanks or apostrophes.

Decided per column: a cell alone cannot tell "1,234" from 1234. Ambiguous columns stay text unless another column
certainly has decimal commas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

Rewrite = Callable[[str], str]

_BLANKS = " \u00a0\u202f'’"
_WHOLE = rf"[-+]?(?:0|[1-9]\d*|[1-9]\d{{0,2}}(?:[.{_BLANKS}]\d{{3}})+)"
# With decimal commas and with decimal points.
_COMMA = re.compile(rf"{_WHOLE}(?:,\d+)?")
_POINT = re.compile(rf"[-+]?(?:0|[1-9]\d*|[1-9]\d{{0,2}}(?:[,{_BLANKS}]\d{{3}})+)(?:\.\d+)?")
# Not thousands: those groups have three digits.
_SURE_COMMA = re.compile(rf"{_WHOLE},(?:\d{{1,2}}|\d{{4,}})|.*[.{_BLANKS}].*,\d+|[-+]?0,\d+")
_SURE_POINT = re.compile(rf".*,.*\.\d+|.*,\d{{3}},.*|.*[{_BLANKS}].*\.\d+")
_SURE_GROUPS = re.compile(r"[-+]?\d{1,3}(?:\.\d{3}){2,}")
_SEPARATED = re.compile(rf"[,.{_BLANKS}]")


def plain_numbers(columns: Mapping[str, Sequence[str]], delimiter: str) -> dict[str, Rewrite]:
    """Converters to "1234.5" for the columns that need one. `columns` has no empty cells.

    With comma delimiters no comma is decimal.
    """
    separated = {name: cells for name, cells in columns.items() if any(map(_SEPARATED.search, cells))}
    commas = {name for name, cells in separated.items() if delimiter != "," and _all(_COMMA, cells)}
    sure = any(_SURE_COMMA.fullmatch(cell) for name in commas for cell in separated[name])
    rewrites: dict[str, Rewrite] = {}
    for name, cells in separated.items():
        if name in commas and _is_comma_column(cells, sure):
            rewrites[name] = _from_comma
        elif _all(_POINT, cells) and _is_point_column(cells, delimiter):
            rewrites[name] = _from_point
    return rewrites


def _all(pattern: re.Pattern[str], cells: Sequence[str]) -> bool:
    return all(map(pattern.fullmatch, cells))


def _is_comma_column(cells: Sequence[str], sure: bool) -> bool:
    if any("," in cell or "." in cell for cell in cells):
        return sure or any(map(_SURE_GROUPS.fullmatch, cells))
    return True  # unambiguous


def _is_point_column(cells: Sequence[str], delimiter: str) -> bool:
    if any("," in cell for cell in cells):
        return delimiter == "," or any(map(_SURE_POINT.fullmatch, cells))
    return any(blank in cell for cell in cells for blank in _BLANKS)


def _from_comma(cell: str) -> str:
    return re.sub(rf"[.{_BLANKS}]", "", cell).replace(",", ".")


def _from_point(cell: str) -> str:
    return re.sub(rf"[,{_BLANKS}]", "", cell)
