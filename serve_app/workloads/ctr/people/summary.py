"""Tells how a file of people was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Above this, columns with missing values are only counted.
MOST_NAMED = 6


@dataclass(frozen=True)
class PeopleSummary:
    """`people` of `rows` rows are valid; `problem` is the first bad row's. `missing` counts people without a value by
    attribute; `warnings` are impossible values and ignored parts."""

    read_as: str
    rows: int
    people: int
    columns: tuple[str, ...]
    missing: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problem: str = ""

    @property
    def text(self) -> str:
        """As in "read as `;`, cp1252: 2,000 people, 9 columns; 282 without income"."""
        people = "1 person" if self.people == 1 else f"{self.people:,} people"
        columns = "1 column" if len(self.columns) == 1 else f"{len(self.columns)} columns"
        return "; ".join([f"read as {self.read_as}: {people}, {columns}", *self.said])

    @property
    def said(self) -> list[str]:
        named = sorted(self.missing.items(), key=lambda item: -item[1])
        found = [f"{count:,} without {name.replace('_', ' ')}" for name, count in named[:MOST_NAMED]]
        if (more := len(named) - MOST_NAMED) > 0:
            found.append(f"gaps in {more} more columns")
        if invalid := self.rows - self.people:
            found.append(f"{invalid:,} row{'s are' if invalid > 1 else ' is'} nobody ({self.problem})")
        return [*found, *self.warnings]

    @property
    def figures(self) -> dict[str, Any]:
        return asdict(self) | {"said": self.said, "text": self.text}
