"""The HTML report of one ad on one population."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serve_app.workloads.ctr.report import charts
from serve_app.workloads.ctr.report.figures import dollars, lines
from serve_app.workloads.ctr.report.page_calibrate import reliability_section
from serve_app.workloads.ctr.statistics.calibration import CALIBRATED, CalibratedRate, Calibration
from serve_app.workloads.ctr.statistics.estimate import column, weights_of
from serve_app.workloads.ctr.statistics.levels import attributes_of
from serve_app.workloads.ctr.statistics.segments import FALSE_DISCOVERY_RATE, Segment, segments
from serve_app.workloads.report.page import SIMULATED, Chart, Grid, Page, Section, Tile, interval, percent, points

UNCALIBRATED = "Confidence and label mass are the model's own, before calibration."


def run_page(
    figures: dict[str, Any],
    results: pa.Table,
    *,
    calibration: Calibration | None = None,
    rate: CalibratedRate | None = None,
    attributes: Sequence[str] | None = None,
) -> Page:
    """The report's page from `report.figures` and the results; with a calibration, the results as
    `apply_calibration` returns them, with the `rate` from there. `attributes` default to all of the people's."""
    value = CALIBRATED if calibration else "p_click"
    chances = column(results, value)
    found = segments(results, chances, attributes=attributes)
    return Page(
        title=f"Who clicks? {figures['ad']}",
        lead=f"Predicted click-through of this ad on {figures['platform']}, over {figures['people']:,} people.",
        tiles=_tiles(figures),
        sections=[
            _segments(found, figures["ctr"], attributes or attributes_of(results)),
            Section(
                "How sure the people are",
                ["Each person has a probability of a click; the CTR is their mean, not a count of yes."],
                [Chart(charts.distribution(chances, weights_of(results)), _spread(chances[chances == chances]))],
            ),
            *([reliability_section(calibration)] if calibration else []),
            Section(
                "The run", [*_speed(figures), *([UNCALIBRATED] if rate else [])], table=Grid(("", ""), lines(figures))
            ),
        ],
        provenance=provenance(figures, results),
        warnings=warnings(figures),
    )


def warnings(figures: dict[str, Any]) -> list[str]:
    """What must be read before any figure."""
    found = [SIMULATED] if figures["simulated"] else []
    missing = figures["people"] - figures["answered"]
    if missing:
        found.append(f"{missing:,} of {figures['people']:,} people have no answer; the figures leave them out.")
    if (summary := figures.get("people_summary")) and summary["said"]:
        found.append(f"The file of people has {'; '.join(summary['said'])}. The model is told only what is there.")
    return found


def provenance(figures: dict[str, Any], results: pa.Table) -> list[tuple[str, str]]:
    """What would have to be the same for the same figures."""
    engines = sorted(filter(None, pc.unique(results["engine_version"]).to_pylist()))
    return [
        ("model", str(figures["model"])),
        ("engine", ", ".join(engines) or "–"),
        ("prompts", str(figures["workload"]) or "–"),
        ("seed of the population", str(figures["seed"])),
        ("job", str(figures["job_id"])),
        ("simulated", "yes" if figures["simulated"] else "no"),
    ]


def _tiles(figures: dict[str, Any]) -> list[Tile]:
    rates = {"CTR, calibrated": "ctr", "CTR by the model": "ctr_raw"}
    if "ctr_raw" not in figures:
        rates = {"CTR by the model": "ctr"}
    cost = figures["cost_per_1000"]
    return [
        *(
            Tile(name, percent(figures[key]), f"95 %: {interval(figures[f'{key}_low'], figures[f'{key}_high'])}")
            for name, key in rates.items()
        ),
        Tile("predicted clicks", f"{figures['expected_clicks']:,.1f}", f"of {figures['answered']:,} people"),
        Tile("high confidence", percent(figures["high_confidence_share"], 1), "of the predictions"),
        Tile("total time", f"{figures['run_s']:,.1f} s", f"{figures['people_per_s']:,.1f} people/s"),
        *([Tile("per 1,000 people", dollars(cost), f"{dollars(figures['cost'])} in all")] if cost else []),
    ]


def _segments(found: list[Segment], mean: float | None, asked: Sequence[str]) -> Section:
    by_attribute = {name: list(group) for name, group in groupby(found, key=lambda segment: segment.attribute)}
    differing = sorted((s for s in found if s.differs), key=lambda s: s.q_value or 0.0)
    named = [f"{_title(s.attribute)} {s.level} ({points(s.versus_rest)} points)" for s in differing[:8]]
    left_out = [_title(name) for name in asked if name not in by_attribute]
    words = [
        "CTR of each group with its 95 % interval; dashed: everybody. Diamonds differ from all other people, at a "
        f"false discovery rate of {FALSE_DISCOVERY_RATE:.0%} over all {len(found)} groups.",
        f"Differ: {', '.join(named)}." if named else "No group differs from the rest beyond chance.",
        "The intervals say how far other people drawn likewise may differ, not how wrong the model may be.",
    ]
    if left_out:
        words.append(f"Not divided into groups (one value only, or too many): {', '.join(left_out)}.")
    return Section(
        "By segment",
        words,
        [
            Chart(
                charts.segment_chart(name, group, label="CTR, %", reference=mean),
                _in_words(group),
                _title(name),
            )
            for name, group in by_attribute.items()
        ],
        segment_table(found),
    )


def segment_table(found: Sequence[Segment], *, differences: bool = False) -> Grid:
    """All segments as a table; of rates, or of differences of rates."""
    show = points if differences else percent
    head = ("attribute", "segment", "people", "answered", "mean", "from", "to", "shrunk", "against the rest", "q")
    rows = [
        (
            _title(s.attribute),
            s.level,
            f"{s.people:,}",
            f"{s.estimate.rows:,}",
            *(show(value) for value in (s.estimate.mean, s.estimate.low, s.estimate.high, s.shrunk)),
            points(s.versus_rest),
            "–" if s.q_value is None else f"{s.q_value:.3g}",
        )
        for s in found
    ]
    return Grid(head, rows, range(2, len(head)))


def _in_words(group: list[Segment]) -> str:
    known = "; ".join(f"{s.level} {percent(s.estimate.mean)}" for s in group)
    return f"CTR by {_title(group[0].attribute)}: {known}"


def _title(attribute: str) -> str:
    return attribute.removeprefix("is_").replace("_", " ")


def _spread(chances: Any) -> str:
    if not len(chances):
        return "No person has an answer."
    return (
        f"Histogram of {len(chances):,} probabilities of a click, from {percent(chances.min())} to "
        f"{percent(chances.max())}, half of them below {percent(float(sorted(chances)[len(chances) // 2]))}"
    )


def _speed(figures: dict[str, Any]) -> list[str]:
    gain = figures["speedup"]
    if gain is None:
        return []
    faster = f"{gain['factor']:.2f}× as fast as one replica, {gain['kind']}"
    if gain["kind"] == "measured":
        return [f"{faster}: one alone took {gain['one_replica_s']:.1f} s."]
    return [
        f"{faster}: the replicas' busy times add up to {gain['one_replica_s']:.1f} s. One alone was not run, and may "
        "be faster than it was beside the others."
    ]
