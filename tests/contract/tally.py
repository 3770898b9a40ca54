"""Counts of answers by route and status, and the requests that a server failed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Of one route and status; more of the same say nothing new.
KEPT_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that the server failed, as a command that repeats it. `status` is None if no answer came."""

    route: str
    status: int | None
    command: str
    answer: str


@dataclass(slots=True)
class Tally:
    """What came back, by route ("POST /v1/completions") and status; None is no answer at all."""

    counts: dict[str, Counter[int | None]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    def add(self, route: str, status: int | None, describe: Callable[[], tuple[str, str]]) -> None:
        """Count an answer. `describe` gives command and answer of a failure; it is called for those that are kept."""
        with self._lock:
            self.counts.setdefault(route, Counter())[status] += 1
            if status is None or status >= 500:
                alike = sum((kept.route, kept.status) == (route, status) for kept in self.failures)
                if alike < KEPT_FAILURES:
                    self.failures.append(Failure(route, status, *describe()))

    @property
    def total(self) -> int:
        """Requests that were sent."""
        return sum(counts.total() for counts in list(self.counts.values()))

    def of_class(self, hundreds: int, route: str | None = None) -> int:
        """Answers of 2xx for 2 and so on, and none at all for 0, of one route or of all."""
        chosen = self.counts.values() if route is None else [self.counts[route]]
        return sum(n for counts in chosen for status, n in counts.items() if (status or 0) // 100 == hundreds)

    @property
    def bad(self) -> int:
        """Answers of 500 and above, and requests without one."""
        return self.of_class(5) + self.of_class(0)

    def table(self) -> list[list[str]]:
        """For each route: requests, 2xx, 3xx, 4xx, 5xx, no answer."""
        return [
            [route, *map(str, (self.counts[route].total(), *(self.of_class(i, route) for i in (2, 3, 4, 5, 0))))]
            for route in sorted(self.counts, key=lambda route: route.split()[::-1])
        ]
