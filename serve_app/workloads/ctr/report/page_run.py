"""The HTML report of one ad on one population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serve_app.workloads.ctr.report import charts
from serve_app.workloads.ctr.report.figures import lines
from serve_app.workloads.ctr.report.page_calibrate import reliability_section
from serve_app.workloads.ctr.report.page_segments import segments_section, strongest_section, who_stands_out
from serve_app.workloads.ctr.statistics.calibration import CALIBRATED, CalibratedRate, Calibration
from serve_app.workloads.ctr.statistics.estimate import column, weights_of
from serve_app.workloads.ctr.statistics.levels import attributes_of
from serve_app.workloads.ctr.statistics.segments import Segment, segments
from serve_app.workloads.report.page import SIMULATED, Chart, Grid, Page, Section, Tile, about, interval, percent

UNCALIBRATED = "Confidence and label mass are the model's own, before calibration."
BY_MODEL = (
    "These are the model's own scores, checked against no real click: they order people and ads better than they "
    "foretell a rate. The range covers which people were drawn, not how wrong the model is; a calibration would tell."
)
BY_CALIBRATION = (
    "Calibrated to observed clicks: the range covers the people drawn, the calibration's curve and this ad's own "
    "error, as far as the ad is like the historic ones."
)


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
        kind=f"Predicted click-through on {figures['platform']}, over {figures['people']:,} people",
        title=figures["ad"],
        sentence=_sentence(figures, found),
        lead=BY_CALIBRATION if calibration else BY_MODEL,
        tiles=_tiles(figures, found),
        sections=[
            strongest_section(found, figures["ctr"]),
            segments_section(found, figures["ctr"], attributes_of(results) if attributes is None else attributes),
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


def _sentence(figures: dict[str, Any], found: Sequence[Segment]) -> str:
    """What the run comes to, and no more than is known: a rate of the model's own is called so."""
    if figures["ctr"] is None:
        return "Nobody has an answer: there is no click-through to tell."
    rate = about(figures["ctr"], figures["ctr_low"], figures["ctr_high"], "would click")
    said = f"About {rate}" if "ctr_raw" in figures else f"By the model's scores, about {rate}"
    groups = who_stands_out(found)
    return f"{said}{'; ' if groups else ''}{groups}."


def _tiles(figures: dict[str, Any], found: Sequence[Segment]) -> list[Tile]:
    rates = {"CTR, calibrated": "ctr", "CTR by the model": "ctr_raw"}
    if "ctr_raw" not in figures:
        rates = {"CTR by the model": "ctr"}
    strong = sum(segment.differs for segment in found)
    return [
        *(
            Tile(name, percent(figures[key]), f"95 %: {interval(figures[f'{key}_low'], figures[f'{key}_high'])}")
            for name, key in rates.items()
        ),
        Tile("expected clicks", f"{figures['expected_clicks']:,.1f}", f"of {figures['answered']:,} people"),
        Tile("groups that stand out", f"{strong:,}", f"of {len(found):,}"),
    ]


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
