"""The HTML report of an experiment: two or more ads on the same people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serve_app.workloads.ctr.report import charts
from serve_app.workloads.ctr.report.page_calibrate import reliability_section
from serve_app.workloads.ctr.report.page_segments import (
    STRONGEST,
    rule,
    segment_charts,
    segment_name,
    segment_table,
    standing_out,
)
from serve_app.workloads.ctr.statistics.calibration import Calibration
from serve_app.workloads.ctr.statistics.experiment import Arm, Comparison, Contrast
from serve_app.workloads.ctr.statistics.sequential import Look
from serve_app.workloads.ctr.trial import Shown
from serve_app.workloads.report.charts import Dot, dots
from serve_app.workloads.report.page import (
    SIMULATED,
    Chart,
    Grid,
    Page,
    Section,
    Tile,
    interval,
    listed,
    percent,
    points,
    shortened,
)

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
    """The page of `serve-app ctr compare`. Ads go by their texts."""
    best = max(comparison.arms, key=lambda arm: arm.best_probability)
    names = short_names(arms)
    return Page(
        kind=f"Comparison of ads on the same {comparison.rows:,} people",
        title=" or ".join(f"“{ad}”" for ad in dict.fromkeys(shown.ad for shown in arms.values())) + "?",
        sentence=_sentence(comparison, best, names),
        lead=COVERS_ALL if comparison.calibrated else COVERS_SAMPLE,
        tiles=[
            Tile("probability of being the best", percent(best.best_probability, 1), names[best.ad]),
            Tile("its CTR", percent(best.rate[0]), f"{100 * comparison.level:.0f} %: {interval(*best.rate[1:])}"),
            Tile("people per ad", f"{comparison.rows:,}", f"{comparison.dropped:,} without an answer to every ad"),
        ],
        sections=[
            _ads(comparison, arms, names),
            _differences(comparison, looks, names, short_names(arms, 20)),
            *(_differing(c, names) for c in comparison.contrasts if best.ad in (c.first, c.second)),
            _effort(comparison, names),
            *([reliability_section(calibration)] if calibration else []),
        ],
        provenance=provenance,
        warnings=_warnings(comparison, simulated),
    )


def short_names(arms: Mapping[str, Shown], longest: int = 40) -> dict[str, str]:
    """The arms by their ads' beginnings, all different; with several platforms by these too."""
    platforms = {shown.platform for shown in arms.values()}
    texts = list(dict.fromkeys(shown.ad for shown in arms.values()))
    short = {text: shortened(text, longest) for text in texts}
    if len(set(short.values())) < len(texts):  # they begin alike
        short = {text: f"{number}. {shortened(text, longest - 3)}" for number, text in enumerate(texts, 1)}
    if len(texts) == 1:
        return {name: shown.platform for name, shown in arms.items()}
    return {
        name: short[shown.ad] if len(platforms) == 1 else f"{short[shown.ad]} ({shown.platform})"
        for name, shown in arms.items()
    }


def _sentence(comparison: Comparison, best: Arm, names: Mapping[str, str]) -> str:
    """The decision, and of two ads the difference; whose opinion it is."""
    whose = "" if comparison.calibrated else "By the model's scores, "
    name = f"“{names[best.ad]}”"
    if comparison.winner is None:
        return (
            f"Undecided: no ad is clearly the best. {whose}{name} leads, and is the best with a probability of "
            f"{100 * best.best_probability:.0f} %."
        )
    rival = "the other" if len(comparison.arms) == 2 else f"all {len(comparison.arms) - 1} others"
    said = f"{whose}{name} wins: it gets more clicks than {rival}"
    if len(comparison.contrasts) > 1:
        return f"{said}."
    gap, low, high = (abs(100 * (value or 0.0)) for value in comparison.contrasts[0].gap)
    low, high = sorted((low, high))
    return f"{said}, by about {gap:.2g} percentage points ({low:.2g} to {high:.2g})."


def _pair(contrast: Contrast, names: Mapping[str, str]) -> str:
    return f"{names[contrast.second]} − {names[contrast.first]}"


def _warnings(comparison: Comparison, simulated: bool) -> list[str]:
    found = [SIMULATED] if simulated else []
    if comparison.dropped:
        found.append(f"{comparison.dropped:,} people lack an answer to some ad and are left out of all.")
    return found


def _ads(comparison: Comparison, arms: Mapping[str, Shown], names: Mapping[str, str]) -> Section:
    rates = [Dot(names[arm.ad], *arm.rate, arm.ad == comparison.winner) for arm in comparison.arms]
    platforms = {shown.platform for shown in arms.values()}
    alt = "; ".join(f"{dot.label} {percent(dot.mean)} ({interval(dot.low, dot.high)})" for dot in rates)
    rows = [
        (
            arms[arm.ad].ad,
            arms[arm.ad].platform,
            percent(arm.rate[0]),
            interval(*arm.rate[1:]),
            percent(arm.best_probability, 1),
        )
        for arm in comparison.arms
    ]
    return Section(
        "The ads by platform" if len(platforms) > 1 else "The ads",
        [f"“{arms[arm.ad].ad}” on {arms[arm.ad].platform}" for arm in comparison.arms],
        [Chart(dots("ads", rates, label="CTR, %"), f"CTR with interval: {alt}")],
        Grid(("ad", "platform", "CTR", "interval", "best with probability"), rows, (2, 3, 4)),
    )


def _differences(
    comparison: Comparison, looks: Sequence[Look], names: Mapping[str, str], shorter: Mapping[str, str]
) -> Section:
    words = ["Diamonds: decided. Dashed: no difference."]
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
            _pair(c, names),
            *(points(value) for value in c.gap),
            percent(c.win_probability, 1),
            "–" if c.p_value is None else f"{c.p_value:.3g}",
            f"{names[c.winner]} wins" if c.winner else "undecided",
        )
        for c in comparison.contrasts
    ]
    head = ("pair", "points", "from", "to", "win probability", "p (of the scores)", "verdict")
    alt = "; ".join(f"{row[0]}: {row[1]} points, {row[2]} to {row[3]}, {row[6]}" for row in rows)
    pairs = [f"{shorter[c.second]}\n− {shorter[c.first]}" for c in comparison.contrasts]
    return Section(
        "Difference",
        words,
        [Chart(charts.forest(comparison, pairs), f"Differences: {alt}")],
        Grid(head, rows, (1, 2, 3, 4, 5)),
    )


def _differing(contrast: Contrast, names: Mapping[str, str]) -> Section:
    """Groups of people in which the difference itself differs from that among all others."""
    found = standing_out(contrast.segments)
    pair = _pair(contrast, names)
    attributes = {segment.attribute for segment in found}
    drawn = [segment for segment in contrast.segments if segment.attribute in attributes]
    named = listed([f"{segment_name(s)} ({points(s.estimate.mean)})" for s in found], STRONGEST)
    words = [
        f"In these groups the difference is another than among everybody else: {named}."
        if found
        else "In no group the difference is another than among everybody else, beyond chance.",
        f"{rule(len(contrast.segments))} Dashed: everybody. It covers the people drawn only.",
    ]
    return Section(
        f"Segments that differ: {pair}",
        words,
        segment_charts(
            f"differ-{contrast.second}-{contrast.first}",
            drawn,
            label="difference of CTR, percentage points",
            reference=contrast.gap[0],
            alt=lambda name, group: (
                f"{pair} by {name}: " + "; ".join(f"{s.level} {points(s.estimate.mean)}" for s in group)
            ),
        ),
        segment_table(contrast.segments, differences=True),
    )


def _effort(comparison: Comparison, names: Mapping[str, str]) -> Section:
    rows = [
        (_pair(c, names), _count(c.rows_needed), points(c.detectable), _count(c.impressions_needed))
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
