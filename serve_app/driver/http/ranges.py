"""A part of a file by the Range header (RFC 9110, 14): one range, as download tools ask for to go on."""

from __future__ import annotations

import re
from typing import NamedTuple

_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")


class Span(NamedTuple):
    """Bytes [start, stop)."""

    start: int
    stop: int


def read_range(header: str | None, size: int) -> Span | None:
    """What of `size` bytes is asked for; None for all of them, also where the header is none that is known here
    (several ranges, other units). An empty span for a range that begins behind the end."""
    found = _RANGE.fullmatch(header or "")
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # the last so many
        return Span(max(0, size - int(last)), size)
    stop = size if not last else min(size, int(last) + 1)
    if last and int(last) < int(first):
        return None
    return Span(min(int(first), size), stop if int(first) < size else size)
