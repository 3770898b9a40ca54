"""Prometheus gauges of running jobs, exported by Ray (scraped as `engine/metrics.py` says).

Sums over jobs: job names come from clients and must not become labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serve_app.spec import JobStatus

GAUGES = {
    "jobs": "Jobs that run or wait for their turn.",
    "rows": "Rows of these jobs.",
    "rows_left": "Rows of these jobs without a committed outcome.",
    "replicas_wanted": "Replicas that these jobs want together.",
    "cost_usd": "Cost of these jobs so far, by the prices that they were submitted with.",
}


class PopulationMetrics:
    """Set every second, so that ended jobs leave the sums."""

    def __init__(self) -> None:
        from ray.serve import metrics  # adds deployment, replica and application to the tags

        self._gauges: dict[str, Any] = {
            name: metrics.Gauge(f"serve_app_population_{name}", description=text) for name, text in GAUGES.items()
        }

    def set(self, statuses: Iterable[JobStatus], replicas_wanted: int) -> None:
        """Take the running jobs' statuses."""
        for name, value in sums(statuses, replicas_wanted).items():
            self._gauges[name].set(value)


def sums(statuses: Iterable[JobStatus], replicas_wanted: int) -> dict[str, float]:
    """The values of `GAUGES`, by name."""
    found = list(statuses)
    return {
        "jobs": len(found),
        "rows": sum(status.total for status in found),
        "rows_left": sum(max(0, status.total - status.done) for status in found),
        "replicas_wanted": replicas_wanted,
        "cost_usd": sum(status.cost or 0.0 for status in found),
    }
