"""What was done and what went wrong, by kind; shared by all clients of a run."""

from __future__ import annotations

from collections import Counter


class Unexpected(Exception):
    """Raised when an answer is not what its kind of request asks for."""


class Tally:
    """Counts, and the first few texts of each kind of error."""

    SHOWN = 3

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.texts: dict[str, list[str]] = {}
        self.rows = 0

    def fail(self, kind: str, error: BaseException) -> None:
        self.errors[kind] += 1
        shown = self.texts.setdefault(kind, [])
        if len(shown) < self.SHOWN:
            shown.append(f"{type(error).__name__}: {str(error)[:500]}")
