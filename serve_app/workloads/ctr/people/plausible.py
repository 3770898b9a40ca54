"""Values that nobody has: an age of -1, an income below 0. They are told, and left as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from serve_app.workloads.ctr.people.distributions import Value, as_text
from serve_app.workloads.ctr.people.values import number

# By a word of the attribute's name: the least and the most. Nobody was older than 122 (Jeanne Calment, 1875 to 1997).
_AGES = {"age", "alter", "edad", "idade", "âge"}
_AMOUNTS = {"income", "salary", "earnings", "wage", "wages", "pay", "spend", "spending", "rent", "price", "revenue"} | {
    "children", "kids", "visits", "orders", "purchases", "height", "einkommen", "gehalt", "umsatz", "revenu", "salaire"
}  # fmt: skip
_WORD = re.compile(r"[^\W_]+")


def bounds_of(attribute: str) -> tuple[float, float] | None:
    """Between which numbers, both within, a person's can be; None where that is not known."""
    words = set(_WORD.findall(attribute.casefold()))
    if words & _AGES:
        return 0.0, 122.0
    return (0.0, float("inf")) if words & _AMOUNTS else None


@dataclass
class Impossible:
    """The impossible values of one attribute: how many, and the first of them with its place."""

    attribute: str
    count: int = 0
    first: str = ""
    _bounds: tuple[float, float] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._bounds = bounds_of(self.attribute)

    def note(self, value: Value, place: str) -> None:
        """Count the value if it is one."""
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
        """In words; "" without any."""
        if not self.count:
            return ""
        more = "" if self.count == 1 else f" and {self.count - 1:,} more"
        return f"impossible {self.attribute}: {self.first}{more}"
