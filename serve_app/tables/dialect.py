"""Detects a delimiter and how quotes are escaped.

Chooses the header's delimiter whose records match the header's length. Deterministic, unlike `csv.Sniffer`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from serve_app.errors import BadSettings
from serve_app.tables import lines as bounds
from serve_app.tables.header import Header, Numbered, find_header

# By preference: commas and bars are common in cells.
DELIMITERS = ("\t", ";", ",", "|")
# An earlier delimiter or plainer quoting may fit this much worse.
TOLERANCE = 0.9
SHOWN = {"\t": "tab"}


@dataclass(frozen=True)
class Dialect:
    """`escape` precedes a quote inside quotes, "" if quotes are doubled. `skip_space`: spaces precede quotes.
    `declared`: the first line is Excel's `sep=;`.
    """

    delimiter: str = ","
    escape: str = ""
    skip_space: bool = False
    declared: bool = False

    @property
    def shown(self) -> str:
        return SHOWN.get(self.delimiter, f"`{self.delimiter}`")

    def records(self, lines: Iterable[str]) -> Iterator[Numbered]:
        """Every record except empty lines and bare delimiters. Bad records do not stop it."""
        # Process-wide; the default is too small for documents.
        csv.field_size_limit(bounds.LONGEST_LINE)
        last = ""

        def seen(line: str) -> str:
            nonlocal last
            if not line:
                raise csv.Error(f"the line is longer than {bounds.LONGEST_LINE} bytes")
            last = line
            return line

        options: dict[str, Any] = {"delimiter": self.delimiter, "strict": True, "skipinitialspace": self.skip_space}
        if self.escape:
            options |= {"doublequote": False, "escapechar": self.escape}
        # `map` continues after an exception.
        reader = csv.reader(map(seen, lines), **options)
        if self.declared:
            next(reader, None)
        while True:
            number = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, str(error)
                continue
            # Quoted empty texts are intended.
            if record and (any(map(str.strip, record)) or '"' in last):
                yield number, record


def sniff(lines: list[str]) -> tuple[Dialect, Header]:
    """The dialect and header of a file that begins with `lines`. Raises BadSettings without the file's name."""
    if lines and (declared := re.fullmatch(r'"?sep=(.)"?[\r\n]*', lines[0])):
        plain = Dialect(declared[1], declared=True)
        return _quoting(plain, lines)
    candidates = [Dialect(delimiter) for delimiter in DELIMITERS if any(delimiter in line for line in lines[:20])]
    fits = [(dialect, *_fit(dialect, lines)) for dialect in candidates]
    fits = [(dialect, fit, header) for dialect, fit, header in fits if header.written > 1]
    if not fits:
        if blank := next((one for one in candidates if next(one.records(lines), None) is None), None):
            return _quoting(blank, lines)  # raises: only delimiters
        return _quoting(Dialect(), lines)
    best = max(fit for _, fit, _ in fits)
    good = [(dialect, header) for dialect, fit, header in fits if fit >= TOLERANCE * best]
    # The first of equals.
    return _quoting(max(good, key=lambda found: (not found[1].skipped, found[1].width))[0], lines)


def _quoting(plain: Dialect, lines: list[str]) -> tuple[Dialect, Header]:
    """With other quoting, if more records fit."""
    found, fit = plain, _fit(plain, lines)[0]
    others = []
    if any('\\"' in line for line in lines):
        others.append(replace(plain, escape="\\"))
    if any(f'{plain.delimiter} "' in line for line in lines):
        others += [replace(other, skip_space=True) for other in (plain, *others)]
    for other in others if fit < 1 else ():
        if (better := _fit(other, lines)[0]) > fit:
            found, fit = other, better
    return found, find_header(list(found.records(lines)))


def _fit(dialect: Dialect, lines: list[str]) -> tuple[float, Header]:
    """The share of records with the header's length, and the header."""
    records = list(dialect.records(lines))
    try:
        header = find_header(records)
    except BadSettings:  # raised later if this dialect wins
        width = len(records[0][1]) if records and isinstance(records[0][1], list) else 0
        header = Header((), (), width, 1, written=width)
    rows = [record for _, record in records[header.skipped + 1 :]]
    good = sum(not isinstance(record, str) and header.fits(record) for record in rows)
    return (good / len(rows) if rows else 1.0), header
