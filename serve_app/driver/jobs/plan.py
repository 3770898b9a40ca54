"""How many replicas a population gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """`chosen` of `available` replicas for `rows` rows. `wanted` may exceed `available`: see `replicas_wanted`."""

    rows: int
    available: int
    wanted: int

    @property
    def chosen(self) -> int:
        """Replicas to use now."""
        return min(self.wanted, self.available)

    @property
    def rows_per_replica(self) -> int:
        """Rows of each chosen replica in equal shares, rounded up; the real numbers are counted as it runs."""
        return -(-self.rows // self.chosen) if self.chosen else 0


def replicas_wanted(rows: int, available: int, *, min_rows: int, max_rows: int) -> int:
    """The original rule: at least `min_rows` and at most `max_rows` rows a replica, existing replicas first.

    With rows/available below `max_rows`: the largest n ≤ available with rows/n ≥ `min_rows`, else 1. Otherwise
    ceil(rows/`max_rows`), but at least `available`; what exceeds it asks to scale up. Raises ValueError for sizes below
    1.
    """
    if rows < 1 or min_rows < 1 or max_rows < min_rows:
        raise ValueError(f"rows {rows}, min_rows {min_rows} and max_rows {max_rows} must be positive and in order")
    available = max(1, available)
    if rows / available < max_rows:
        return max(1, min(available, rows // min_rows))
    return available + max(0, -(-rows // max_rows) - available)


def make_plan(rows: int, available: int, *, min_rows: int, max_rows: int) -> Plan:
    """The plan for `rows` rows when `available` replicas run."""
    return Plan(rows, available, replicas_wanted(rows, available, min_rows=min_rows, max_rows=max_rows))
