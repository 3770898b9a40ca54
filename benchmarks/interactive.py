"""Figures of the dispatch from a process of its own in the cluster: what commits cost, and what a call costs.

Both need a running cluster with one replica.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serve_app.client.replicas import ReplicaClient
from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.render import TokenRenderer
from serve_app.dispatch.replicas import HandlePool
from serve_app.driver.jobs.job import make_dispatcher
from serve_app.driver.jobs.part import PartRun, Span
from serve_app.driver.sources.template import Input
from serve_app.driver.store.idmap import IdMap
from serve_app.driver.store.store import Store
from serve_app.schema import Chunk, Outcome, Row
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec
from serve_app.workloads.ctr.asking.prompts import NO, WORKLOAD, YES


class Rows:
    """Rows in memory; see `driver.sources.Source`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        return itertools.islice(self._rows, start, stop)

    def inputs(self) -> Iterator[Input]:
        return (Input({}, row) for row in self._rows)

    def ids(self) -> Iterator[str]:
        return (row.custom_id for row in self._rows)

    def count(self) -> int:
        return len(self._rows)


class NoLog:
    """A log that keeps nothing: the driver without commits."""

    rows = 0
    report: dict[str, Any] = {}  # noqa: RUF012  # never written

    def begin(self) -> None:
        """Nothing to open."""

    def committed(self) -> IdMap:
        """Nothing is."""
        return IdMap()

    def append(self, outcomes: Sequence[Outcome], report: dict[str, Any]) -> None:
        """Forget them."""


def connect() -> HandlePool:
    """The running cluster's replicas."""
    import ray

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    return HandlePool.of()


async def durability_cost(folder: Path, populations: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Rows/s with commits over rows/s without, on the two halves of each population, in turns; the first is warm-up."""
    settings = DriverSettings(store=str(folder / "durability"), min_rows_per_replica=1)
    store = Store(settings.store)
    ratios = []
    async with make_dispatcher(connect(), settings) as dispatcher:
        for number, rows in enumerate(populations):
            log = store.create(f"job-{number}", {"workload": "durability", "labels": []}).part(0)
            sides: list[tuple[str, Any]] = [("with", log), ("without", NoLog())]
            half = len(rows) // 2
            halves = {"with": rows[:half], "without": rows[half:]}
            rates = {}
            for name, kept in sides if number % 2 else sides[::-1]:
                rates[name] = await _rate(kept, halves[name], dispatcher, settings)
            ratios.append(rates["with"] / rates["without"])
    counted = ratios[1:]
    return {"durability_cost": round(statistics.median(counted), 4), "durability_cost_passes": counted}


async def _rate(log: Any, rows: Sequence[Row], dispatcher: Dispatcher, settings: DriverSettings) -> float:
    spec = JobSpec(rows=({"custom_id": "unused"},), workload=WORKLOAD, labels=(YES, NO))
    part = PartRun(
        spec, Rows(rows), log, dispatcher, settings, span=Span(0, len(rows)), limit=lambda available: available
    )
    started = time.perf_counter()
    await part.execute()
    if part.tally.ok != len(rows):
        raise SystemExit(f"void: {part.tally}")
    return len(rows) / (time.perf_counter() - started)


async def interactive_overhead(populations: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Milliseconds of a 256-prompt call through the client beyond the engine's own time for as many prompts.

    The engine's own time is the longest latency that the replica measured in one chunk of all prompts. Both kinds
    see new rows each time, in turns; the first of each is warm-up; medians are compared.
    """
    calls, engine = [], []
    pool = connect()
    async with ReplicaClient(pool) as client:
        (replica,) = await pool.replicas()
        renderer = TokenRenderer(replica.engine.tokenizer)
        labels = renderer.label_ids([YES, NO])
        for number, rows in enumerate(populations):
            half = len(rows) // 2
            first, second = rows[:half], rows[half:]
            started = time.perf_counter()
            answers = await client.score([row.messages for row in first], [YES, NO])
            calls.append((time.perf_counter() - started) * 1000)
            packed = tuple(prompt for prompt in renderer.prompts(second) if isinstance(prompt, bytes))
            chunk = Chunk(number, packed, labels, priority=5)
            done = [one async for some in pool.run(replica.replica_id, chunk) for one in some.completions.values()]
            engine.append(max(completion.latency_ms for completion in done))
            if any(answer.status != "ok" for answer in answers):
                raise SystemExit("void: an interactive call was not answered whole")
    overhead = statistics.median(calls[1:]) - statistics.median(engine[1:])
    return {
        "interactive_overhead_ms": round(overhead, 2),
        "interactive_call_ms": round(statistics.median(calls[1:]), 2),
        "interactive_engine_ms": round(statistics.median(engine[1:]), 2),
        "interactive_prompts": len(populations[0]) // 2,
    }
