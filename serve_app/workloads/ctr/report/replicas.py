"""What each replica of a run did, counted from the results, and what it gained over one replica alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

from serve_app.errors import BadSettings


@dataclass(frozen=True, slots=True)
class ReplicaWork:
    """`rows` are those that the replica answered; `busy_s` runs from the start of its first to the end of its last,
    `rows_per_s` is their quotient (None where the results have no times)."""

    replica: str
    rows: int
    busy_s: float | None

    @property
    def rows_per_s(self) -> float | None:
        """Its own pace."""
        return self.rows / self.busy_s if self.busy_s else None


@dataclass(frozen=True, slots=True)
class Speedup:
    """Time of one replica over time of all. *measured*: one replica ran the same population by itself. *modelled*:
    the sum of the replicas' busy times over the run's time, which takes one alone to be no faster than it was beside
    the others; where replicas share cores it is too high."""

    factor: float
    kind: Literal["measured", "modelled"]
    one_replica_s: float


def replica_work(table: pa.Table) -> list[ReplicaWork]:
    """By replica, from columns `replica`, `finished_at` (ISO 8601) and `latency_ms`."""
    spans: dict[str, tuple[int, float, float]] = {}
    columns = (table[name].to_pylist() for name in ("status", "replica", "finished_at", "latency_ms"))
    for status, replica, finished_at, latency_ms in zip(*columns, strict=True):
        if status != "ok" or replica is None:
            continue
        end = datetime.fromisoformat(finished_at).timestamp() if finished_at else float("nan")
        start = end - (latency_ms or 0.0) / 1000
        rows, first, last = spans.get(replica, (0, start, end))
        spans[replica] = (rows + 1, min(first, start), max(last, end))
    return [
        ReplicaWork(replica, rows, last - first if last > first else None)
        for replica, (rows, first, last) in sorted(spans.items())
    ]


def speedup(work: list[ReplicaWork], run_s: float, one_replica: Mapping[str, Any] | None = None) -> Speedup | None:
    """Measured where `one_replica` is given: the report of the same population's run on one replica. Otherwise
    modelled; None where there is nothing to model it from.

    Raises BadSettings for a report of another number of rows, model or replicas than one.
    """
    rows = sum(done.rows for done in work)
    if not rows or run_s <= 0:
        return None
    if one_replica is not None:
        if one_replica["replicas"] != 1 or one_replica["ok"] != rows:
            raise BadSettings(
                f"the report to compare with is of {one_replica['replicas']} replica(s) and {one_replica['ok']} rows: "
                f"it must be one replica's run of the same {rows} rows"
            )
        return Speedup(one_replica["run_s"] / run_s, "measured", one_replica["run_s"])
    if any(done.busy_s is None for done in work):
        return None
    alone_s = sum(done.busy_s or 0.0 for done in work)
    return Speedup(alone_s / run_s, "modelled", alone_s)
