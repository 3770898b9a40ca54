"""The HTML report of an experiment: two or more ads on the same people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from serve_app.workloads.ctr.report import charts
from serve_app.workloads.ctr.report.page_calibrate import reliability_section
from serve_app.workloads.ctr.report.page_run import segment_table
from serve_app.workloads.ctr.statistics.calibration import Calibration
from serve_app.workloads.ctr.statistics.experiment import Arm, Comparison, Contrast
from serve_app.workloads.ctr.statistics.sequential import Look
from serve_app.workloads.ctr.trial import Shown
from serve_app.workloads.report.charts import Dot, dots
from serve_app.workloads.report.page import SIMULATED, Chart, Grid, Page, Section, Tile, interval, percent, points

COVERS_ALL = (
    "Intervals and probabilities cover the people drawn, the calibration's curve and each ad's own error: they are "
    "about clicks in the world, as far as these ads are like the historic ones."
)
COVERS_SAMPLE = (
    "Intervals and probabilities cover only the draw of the people: they are about what the model would say of all "
    "people drawn likewise. How wrong the model is, they do not know; a calibration would tell."
)


def compare_page(
    comparison: Comparison,
    arms: Mapping[str, Shown],
    *,
    provenance: Sequence[tuple[str, str]],
    simulated: bool,
    calibration: Calibration | None = None,
    looks: Sequence[Look] = (),
) -> Page:
    """The page of `serve-app ctr compare`."""
    best = max(comparison.arms, key=lambda arm: arm.best_probability)
    winner = comparison.winner
    return Page(
        title=f"{winner} wins" if winner else "Undecided: no ad is clearly the best",
        lead=f"{len(comparison.arms)} ads on the same {comparison.rows:,} people.",
        tiles=[
            Tile("most likely the best", best.ad, f"with probability {percent(best.best_probability, 1)}"),
            Tile("its CTR", percent(_rate(best)[0]), f"{comparison.level:.0%}: {interval(*_rate(best)[1:])}"),
            Tile("people per ad", f"{comparison.rows:,}", f"{comparison.dropped:,} without an answer to every ad"),
        ],
        sections=[
            _ads(comparison, arms),
            _differences(comparison, looks),
            *(_differing(c) for c in comparison.contrasts if best.ad in (c.first, c.second)),
            _effort(comparison),
            *([reliability_section(calibration)] if calibration else []),
        ],
        provenance=provenance,
        warnings=_warnings(comparison, simulated),
    )


def _warnings(comparison: Comparison, simulated: bool) -> list[str]:
    found = [SIMULATED] if simulated else []
    if comparison.dropped:
        found.append(f"{comparison.dropped:,} people lack an answer to some ad and are left out of all.")
    return found


def _rate(arm: Arm) -> tuple[float | None, float | None, float | None]:
    if arm.calibrated:
        return arm.calibrated.ctr, arm.calibrated.low, arm.calibrated.high
    return arm.score.mean, arm.score.low, arm.score.high


def _ads(comparison: Comparison, arms: Mapping[str, Shown]) -> Section:
    rates = [Dot(arm.ad, *_rate(arm), arm.ad == comparison.winner) for arm in comparison.arms]
    platforms = {shown.platform for shown in arms.values()}
    alt = "; ".join(f"{arm.ad} {percent(_rate(arm)[0])} ({interval(*_rate(arm)[1:])})" for arm in comparison.arms)
    rows = [
        (
            arm.ad,
            arms[arm.ad].ad,
            arms[arm.ad].platform,
            percent(_rate(arm)[0]),
            interval(*_rate(arm)[1:]),
            percent(arm.best_probability, 1),
        )
        for arm in comparison.arms
    ]
    return Section(
        "The ads by platform" if len(platforms) > 1 else "The ads",
        [f"{arm.ad}: “{arms[arm.ad].ad}” on {arms[arm.ad].platform}" for arm in comparison.arms],
        [Chart(dots("ads", rates, label="CTR, %"), f"CTR with interval: {alt}")],
        Grid(("", "ad", "platform", "CTR", "interval", "best with probability"), rows, (3, 4, 5)),
    )


def _differences(comparison: Comparison, looks: Sequence[Look]) -> Section:
    words = [COVERS_ALL if comparison.calibrated else COVERS_SAMPLE]
    if len(comparison.contrasts) > 1:
        words.append(f"Adjusted for {len(comparison.contrasts)} pairs (Bonferroni).")
    if looks:
        words.append(
            f"Looked at {len(looks)} times, last after {looks[-1].rows:,} people; the intervals of the scores hold at "
            "all looks at once (asymptotic confidence sequence)."
        )
        if looks[-1].equivalent:
            words.append("No two ads differ by more than the difference that was said not to matter.")
    rows = [
        (
            f"{c.second} − {c.first}",
            *(points(value) for value in _difference(c)),
            percent(c.win_probability, 1),
            "–" if c.p_value is None else f"{c.p_value:.3g}",
            f"{c.winner} wins" if c.winner else "undecided",
        )
        for c in comparison.contrasts
    ]
    head = ("pair", "points", "from", "to", "win probability", "p (of the scores)", "verdict")
    alt = "; ".join(f"{row[0]}: {row[1]} points, {row[2]} to {row[3]}, {row[6]}" for row in rows)
    names = {arm.ad: arm.ad for arm in comparison.arms}
    return Section(
        "Difference",
        words,
        [Chart(charts.forest(comparison, names), f"Differences: {alt}", "Diamonds: decided.")],
        Grid(head, rows, (1, 2, 3, 4, 5)),
    )


def _difference(c: Contrast) -> tuple[float | None, float | None, float | None]:
    return c.calibrated or (c.difference.mean, c.difference.low, c.difference.high)


def _differing(contrast: Contrast) -> Section:
    """Groups of people in which the difference itself differs from that among all others."""
    found = [s for s in contrast.segments if s.differs]
    pair = f"{contrast.second} − {contrast.first}"
    by_attribute = {
        name: list(group)
        for name, group in groupby(contrast.segments, key=lambda s: s.attribute)
        if any(s in found for s in contrast.segments if s.attribute == name)
    }
    named = ", ".join(f"{s.attribute} {s.level} ({points(s.estimate.mean)})" for s in found)
    words = [
        f"In these groups the difference is another than among everybody else: {named}."
        if found
        else "In no group the difference is another than among everybody else, beyond chance.",
        "At a false discovery rate of 5 % over all groups; dashed: everybody. It covers the people drawn only.",
    ]
    return Section(
        f"Segments that differ: {pair}",
        words,
        [
            Chart(
                dots(
                    f"differ-{pair}-{name}",
                    [Dot(s.level, s.estimate.mean, s.estimate.low, s.estimate.high, s.differs) for s in group],
                    label=f"{pair}, percentage points",
                    reference=_difference(contrast)[0],
                ),
                f"{pair} by {name}: " + "; ".join(f"{s.level} {points(s.estimate.mean)}" for s in group),
                name.replace("_", " "),
            )
            for name, group in by_attribute.items()
        ],
        segment_table(contrast.segments, differences=True),
    )


def _effort(comparison: Comparison) -> Section:
    rows = [
        (f"{c.second} − {c.first}", _count(c.rows_needed), points(c.detectable), _count(c.impressions_needed))
        for c in comparison.contrasts
    ]
    return Section(
        "What it takes",
        [
            f"By the scores: people for the difference to be found with {comparison.power:.0%} power; the smallest "
            "difference that this many people find; and, calibrated, the impressions of each ad that a live A/B "
            "test would need."
        ],
        table=Grid(("pair", "people needed", "detectable, points", "live impressions per ad"), rows, (1, 2, 3)),
    )


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
