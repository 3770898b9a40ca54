"""What was sent and what was wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

# Of one place and kind; more of the same say nothing new.
KEPT = 3


@dataclass(frozen=True)
class Failure:
    """`case` is the number that, with the seed, makes the input again."""

    where: str
    kind: str
    case: str
    detail: str


@dataclass
class Ledger:
    routes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    wrong: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return self.routes.total() + self.formats.total()

    def fail(self, where: str, kind: str, case: str, detail: Any) -> None:
        """Kinds: crash, 5xx, outside, leak, connected, shape, slow, memory, dead."""
        self.wrong[where, kind] += 1
        if self.wrong[where, kind] <= KEPT:
            self.failures.append(Failure(where, kind, case, str(detail)[:2000]))

    def count(self, kind: str) -> int:
        return sum(number for (_, found), number in self.wrong.items() if found == kind)

    def told(self) -> list[dict[str, str]]:
        return [asdict(failure) for failure in self.failures]

    def table(self) -> list[list[str]]:
        """For each place: inputs, and what was wrong."""
        lines = []
        for place, number in sorted({**self.routes, **self.formats}.items()):
            wrong = ", ".join(
                f"{kind}: {count}" for (where, kind), count in sorted(self.wrong.items()) if where == place
            )
            lines.append([place, str(number), wrong or "-"])
        return lines
