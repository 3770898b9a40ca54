"""Finds impossible values, such as age -1 or negative income; they are reported but kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from serve_app.workloads.ctr.people.distributions import Value, as_text
from serve_app.workloads.ctr.people.values import number

# Least and most by a word of the name. Maximum age: 122 (Jeanne Calment, 1875 to 1997).
_AGES = {"age", "alter", "edad", "idade", "âge"}
_AMOUNTS = {"income", "salary", "earnings", "wage", "wages", "pay", "spend", "spending", "rent", "price", "revenue"} | {
    "children", "kids", "visits", "orders", "purchases", "height", "einkommen", "gehalt", "umsatz", "revenu", "salaire"
}  # fmt: skip
_WORD = re.compile(r"[^\W_]+")


def bounds_of(attribute: str) -> tuple[float, float] | None:
    """A person's inclusive bounds, None if unknown."""
    words = set(_WORD.findall(attribute.casefold()))
    if words & _AGES:
        return 0.0, 122.0
    return (0.0, float("inf")) if words & _AMOUNTS else None


@dataclass
class Impossible:
    """An attribute's impossible values: their number, and the first with its place."""

    attribute: str
    count: int = 0
    first: str = ""
    _bounds: tuple[float, float] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._bounds = bounds_of(self.attribute)

    def note(self, value: Value, place: str) -> None:
        if self._bounds is None or value is None or isinstance(value, bool):
            return
        try:
            found = number(value)
        except ValueError:  # a class, as 20-40k
            return
        if not self._bounds[0] <= found <= self._bounds[1]:
            self.count += 1
            self.first = self.first or f"{as_text(value)} in {place}"

    @property
    def said(self) -> str:
        if not self.count:
            return ""
        more = "" if self.count == 1 else f" and {self.count - 1:,} more"
        return f"impossible {self.attribute}: {self.first}{more}"
