"""Which groups differ: each group's mean with an interval, tested against the others.

With many groups, differences need a false discovery rate (Benjamini & Hochberg 1995), and means are also shrunk towards
the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from scipy import stats

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.estimate import Estimate, Floats, rate_interval, weights_of
from serve_app.workloads.ctr.statistics.levels import Level, attributes_of, levels_of

FALSE_DISCOVERY_RATE = 0.05


@dataclass(frozen=True, slots=True)
class Segment:
    """A group of `people` and the mean of those answered.

    `versus_rest` is its mean minus the others'; `p_value` is Student's test of 0, `q_value` the same adjusted over all
    segments of the call. `shrunk` is drawn towards the attribute's mean (empirical Bayes), better for small groups.
    None with too few answers.
    """

    attribute: str
    level: str
    people: int
    estimate: Estimate
    versus_rest: float | None
    p_value: float | None
    q_value: float | None = None
    shrunk: float | None = None

    @property
    def differs(self) -> bool:
        """Whether it differs from the rest at the false discovery rate."""
        return self.q_value is not None and self.q_value <= FALSE_DISCOVERY_RATE


def segments(
    table: pa.Table,
    values: Floats,
    *,
    attributes: Sequence[str] | None = None,
    cuts: Mapping[str, Sequence[float]] | None = None,
    known: Mapping[str, Sequence[str]] | None = None,
    level: float = 0.95,
    interval: Callable[..., Estimate] = rate_interval,
) -> list[Segment]:
    """Segments of `table` (attribute columns) by the mean of `values`, shape (rows,), NaN where unanswered.

    `values` are click probabilities, or two ads' differences with `difference_interval` as `interval`. `cuts` and
    `known` are by attribute (`levels_of`). An attribute with one group, or too many, gives none; empty groups have
    counts of 0. Raises BadSettings for a missing attribute.
    """
    if len(values) != table.num_rows:
        raise BadSettings(f"{len(values)} values for {table.num_rows} rows")
    weights = weights_of(table)
    found: list[Segment] = []
    for attribute in attributes_of(table) if attributes is None else attributes:
        groups = levels_of(table, attribute, cuts=(cuts or {}).get(attribute), known=(known or {}).get(attribute, ()))
        if len(groups) > 1:
            found += _shrink([_segment(group, values, weights, level, interval) for group in groups])
    return _adjust(found)


def _segment(
    group: Level, values: Floats, weights: Floats | None, level: float, interval: Callable[..., Estimate]
) -> Segment:
    answered = ~np.isnan(values)
    inside, outside = answered & group.mask, answered & ~group.mask
    own, rest = (
        interval(values[part], None if weights is None else weights[part], level=level) for part in (inside, outside)
    )
    versus, p_value = student(own, rest)
    return Segment(group.attribute, group.name, int(group.mask.sum()), own, versus, p_value)


def student(one: Estimate, other: Estimate) -> tuple[float | None, float | None]:
    """Difference of two independent means and two-sided p-value of Student's t test with pooled variance.

    Under the null a group is like all others. Click probabilities are skewed: among 12 equal groups of 200 people,
    Welch's test (adjusted) found a difference in 10 to 23 % of 1,500 simulated populations, this one in 5 to 7 %.
    """
    if one.mean is None or other.mean is None:
        return None, None
    difference = one.mean - other.mean
    if one.se is None or other.se is None:
        return difference, None
    # Kish's sizes (unweighted: row counts) and row variances.
    sizes = one.df + 1, other.df + 1
    df = one.df + other.df
    variance = (one.df * one.se**2 * sizes[0] + other.df * other.se**2 * sizes[1]) / df
    if variance == 0:
        return difference, float(difference == 0)
    error = (variance * (1 / sizes[0] + 1 / sizes[1])) ** 0.5
    return difference, float(2 * stats.t.sf(abs(difference) / error, df))


def _shrink(group: list[Segment]) -> list[Segment]:
    """Means shrunk to their common mean by se²/(se² + τ²), τ² by moments (DerSimonian & Laird 1986)."""
    estimates = {s.level: s.estimate for s in group}
    known = {level: (e.mean, e.se**2) for level, e in estimates.items() if e.mean is not None and e.se}
    if len(known) < 3:
        return group
    means, variances = np.array(list(known.values())).T
    inverse = 1 / variances
    common = inverse @ means / inverse.sum()
    excess = inverse @ (means - common) ** 2 - (len(known) - 1)
    between = max(0.0, excess / (inverse.sum() - (inverse**2).sum() / inverse.sum()))
    centre = (1 / (variances + between)) @ means / (1 / (variances + between)).sum()
    shrunk = centre + between / (between + variances) * (means - centre)
    by_level = dict(zip(known, shrunk.tolist(), strict=True))
    return [replace(s, shrunk=by_level.get(s.level)) for s in group]


def _adjust(found: list[Segment]) -> list[Segment]:
    tested = [s.p_value for s in found if s.p_value is not None]
    adjusted = iter(stats.false_discovery_control(tested).tolist() if tested else [])
    return [s if s.p_value is None else replace(s, q_value=next(adjusted)) for s in found]
