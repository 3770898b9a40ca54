"""Lines of a file, each bounded in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

# Bytes. Bounds memory when a line end or quote is missing.
LONGEST_LINE = 1 << 24


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, split at \\n only, without a byte order mark; "" for one above LONGEST_LINE bytes."""
    line = file.readline(LONGEST_LINE).removeprefix(b"\xef\xbb\xbf")
    while line:
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield b""
        line = file.readline(LONGEST_LINE)
