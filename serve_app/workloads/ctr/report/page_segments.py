"""What a report says of groups of people: which stand out, all on one axis, and all as a table.

A group stands out only at a false discovery rate over all groups (`statistics/segments.py`): what chance alone shows is
never called a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from serve_app.workloads.ctr.report import charts
from serve_app.workloads.ctr.statistics.segments import FALSE_DISCOVERY_RATE, Segment
from serve_app.workloads.report.charts import dots, limits
from serve_app.workloads.report.page import Chart, Grid, Section, listed, percent, points

# Named and drawn as the strongest; the others are counted.
STRONGEST = 8


def standing_out(found: Sequence[Segment]) -> list[Segment]:
    """The segments that differ from the rest, the largest difference first."""
    return sorted((s for s in found if s.differs), key=lambda s: -abs(s.versus_rest or 0.0))


def who_stands_out(found: Sequence[Segment]) -> str:
    """The end of a headline; empty where there are no groups."""
    strong = standing_out(found)
    if not strong:
        return "no group stands out" if found else ""
    most = f"{segment_name(strong[0])} ({percent(strong[0].estimate.mean, 1)})"
    return f"{most} stands out" if len(strong) == 1 else f"{len(strong)} groups stand out, most of all {most}"


def rule(groups: int) -> str:
    """When a group stands out."""
    return (
        "A group stands out if it differs from all other people at a false discovery rate of "
        f"{100 * FALSE_DISCOVERY_RATE:.0f} % over all {groups} groups (Benjamini and Hochberg 1995): of "
        f"those named, about one in {1 / FALSE_DISCOVERY_RATE:.0f} may be chance."
    )


def strongest_section(found: Sequence[Segment], reference: float | None) -> Section:
    """The groups that stand out."""
    strong = standing_out(found)
    named = [f"{segment_name(s)} ({points(s.versus_rest)})" for s in strong]
    words = [
        f"In percentage points against all other people: {listed(named, STRONGEST)}."
        if strong
        else "No group differs from the others beyond chance.",
        rule(len(found)),
    ]
    return Section("Who stands out", words, [_strongest_chart(strong[:STRONGEST], reference)] if strong else [])


def _strongest_chart(strong: Sequence[Segment], reference: float | None) -> Chart:
    lines = [charts.segment_dot(segment, segment_name(segment)) for segment in strong]
    alt = "CTR of the groups that stand out: " + "; ".join(f"{dot.label} {percent(dot.mean)}" for dot in lines)
    return Chart(dots("strongest", lines, label="CTR, % (dashed: everybody)", reference=reference), alt)


def segments_section(found: Sequence[Segment], mean: float | None, asked: Sequence[str]) -> Section:
    """All groups, attribute by attribute, on one axis."""
    divided = {segment.attribute for segment in found}
    left_out = [attribute_name(name) for name in asked if name not in divided]
    words = [
        "CTR of each group with its 95 % interval, all on one axis; dashed: everybody; a diamond: it stands out. "
        "The intervals say how far other people drawn likewise may differ, not how wrong the model may be.",
    ]
    if left_out:
        words.append(f"Not divided into groups (one value only, or too many): {', '.join(left_out)}.")
    return Section(
        "By segment",
        words,
        segment_charts("segments", found, label="CTR, %", reference=mean, alt=_in_words),
        segment_table(found),
    )


def segment_charts(
    prefix: str,
    found: Sequence[Segment],
    *,
    label: str,
    reference: float | None,
    alt: Callable[[str, Sequence[Segment]], str],
) -> list[Chart]:
    """A chart for each attribute, on one axis; `alt` says one in words, from the attribute and its groups."""
    within = limits([charts.segment_dot(segment) for segment in found], reference)
    by_attribute = {name: list(group) for name, group in groupby(found, key=lambda segment: segment.attribute)}
    return [
        Chart(
            dots(
                f"{prefix}-{name}",
                [charts.segment_dot(segment) for segment in group],
                label=label,
                reference=reference,
                within=within,
            ),
            alt(name, group),
            attribute_name(name),
        )
        for name, group in by_attribute.items()
    ]


def segment_table(found: Sequence[Segment], *, differences: bool = False) -> Grid:
    """All segments as a table; of rates, or of differences of rates."""
    show = points if differences else percent
    head = ("attribute", "segment", "people", "answered", "mean", "from", "to", "shrunk", "against the rest", "q")
    rows = [
        (
            attribute_name(s.attribute),
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


def segment_name(segment: Segment) -> str:
    """As in "age 25–34"."""
    return f"{attribute_name(segment.attribute)} {segment.level}"


def attribute_name(attribute: str) -> str:
    """A column's name in words."""
    return attribute.removeprefix("is_").replace("_", " ")


def _in_words(attribute: str, group: Sequence[Segment]) -> str:
    known = "; ".join(f"{s.level} {percent(s.estimate.mean)}" for s in group)
    return f"CTR by {attribute_name(attribute)}: {known}"
