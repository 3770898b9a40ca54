"""Ads on the same population: which gets more clicks, by how much, and how surely.

Without a calibration, intervals and probabilities cover only the draw of the population: what the *model* prefers on
people drawn likewise. With one they add the curve's and each ad's error (`calibration.py`): what the world prefers. Act
on the latter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pyarrow as pa
from scipy import stats
from scipy.special import expit, logit

from serve_app.workloads.ctr.statistics.calibration import EDGE, CalibratedRate, Calibration, calibrated_rate, move_mean
from serve_app.workloads.ctr.statistics.estimate import Estimate, Floats, difference_interval, rate_interval
from serve_app.workloads.ctr.statistics.pairing import PairedRows, pair_rows
from serve_app.workloads.ctr.statistics.power import detectable, impressions_needed, rows_needed
from serve_app.workloads.ctr.statistics.segments import Segment, segments
from serve_app.workloads.ctr.statistics.sequential import Look

DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Arm:
    """An ad's CTR on paired people, and the probability that it is best."""

    ad: str
    score: Estimate
    calibrated: CalibratedRate | None
    best_probability: float

    @property
    def rate(self) -> tuple[float | None, float | None, float | None]:
        """CTR, low, high: calibrated, or else the score's."""
        if self.calibrated:
            return self.calibrated.ctr, self.calibrated.low, self.calibrated.high
        return self.score.mean, self.score.low, self.score.high


@dataclass(frozen=True, slots=True)
class Contrast:
    """`second` minus `first`. Intervals and p-values are Bonferroni-adjusted for all pairs, so an interval without 0,
    `p_value` ≤ alpha and `decided` agree. A sequential stop has no p-value.

    `difference` is of scores. With a calibration, `calibrated` (difference, low, high) is of CTRs; `win_probability`
    (that `second` has the higher CTR), `decided` and segments use calibrated probabilities.
    """

    first: str
    second: str
    difference: Estimate
    p_value: float | None
    calibrated: tuple[float, float, float] | None
    win_probability: float
    decided: bool
    rows_needed: int | None
    detectable: float | None
    impressions_needed: int | None
    segments: tuple[Segment, ...]

    @property
    def gap(self) -> tuple[float | None, float | None, float | None]:
        """Difference, low, high: calibrated, or else the scores'."""
        return self.calibrated or (self.difference.mean, self.difference.low, self.difference.high)

    @property
    def winner(self) -> str | None:
        if not self.decided:
            return None
        return self.second if self.win_probability > 0.5 else self.first


@dataclass(frozen=True, slots=True)
class Comparison:
    """The experiment's result. `rows` people have answers for every ad, `dropped` do not."""

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    rows: int
    dropped: int
    level: float
    power: float
    calibrated: bool

    @property
    def winner(self) -> str | None:
        """The ad decidedly better than all others."""
        for arm in self.arms:
            rivals = [c for c in self.contrasts if arm.ad in (c.first, c.second)]
            if all(contrast.winner == arm.ad for contrast in rivals):
                return arm.ad
        return None


@dataclass(frozen=True, slots=True)
class _Asked:
    level: float
    alpha: float  # of one pair
    power: float
    smallest: float | None
    look: Look | None
    attributes: Sequence[str] | None


def compare(
    results: Mapping[str, pa.Table],
    *,
    calibration: Calibration | None = None,
    level: float = 0.95,
    power: float = 0.8,
    smallest: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    look: Look | None = None,
    attributes: Sequence[str] | None = None,
) -> Comparison:
    """Compare ads by results (columns id, p_click, attributes; `weight` if sampled so) on one population.

    `rows_needed` is for the observed difference, or for `smallest`, the smallest difference worth knowing. Check the
    calibration against the runs first (`Calibration.check`). With `look`, the last one of a sequential test, the
    differences' intervals and decisions are the confidence sequence's: an ordinary interval is wrong once the data
    chose when to stop. `attributes` are those whose segments are looked at; without, all. Raises BadSettings as
    `pair_rows` does.
    """
    paired = pair_rows(results)
    weights = paired.weights
    scores = [rate_interval(chances, weights, level=level) for chances in paired.chances.T]
    rates = [None if calibration is None else calibrated_rate(calibration, score) for score in scores]
    shown = [
        chances if rate is None else move_mean(chances, weights, rate.ctr)
        for chances, rate in zip(paired.chances.T, rates, strict=True)
    ]
    drawn = _draw_rates(paired, scores, calibration, draws, np.random.default_rng(seed))
    leads = drawn >= drawn.max(axis=1, keepdims=True) - 1e-12  # equal ads share the lead
    best = (leads / leads.sum(axis=1, keepdims=True)).mean(axis=0)
    pairs = list(combinations(range(len(scores)), 2))
    asked = _Asked(level, (1 - level) / len(pairs), power, smallest, look, attributes)
    return Comparison(
        arms=tuple(Arm(*arm) for arm in zip(paired.ads, scores, rates, best.tolist(), strict=True)),
        contrasts=tuple(_contrast(paired, pair, shown, drawn if calibration else None, asked) for pair in pairs),
        rows=len(paired.chances),
        dropped=paired.dropped,
        level=level,
        power=power,
        calibrated=calibration is not None,
    )


def _draw_rates(
    paired: PairedRows, scores: list[Estimate], calibration: Calibration | None, draws: int, rng: np.random.Generator
) -> Floats:
    """Draws of CTRs (draws, ads): means jointly Student's t, since people are shared."""
    chances, weights = paired.chances, paired.weights
    share = np.full(len(chances), 1 / len(chances)) if weights is None else weights / weights.sum()
    means = share @ chances
    moved = share[:, None] * (chances - means)
    covariance = moved.T @ moved * len(chances) / max(1, len(chances) - 1)
    df = max(scores[0].df, 1.0)
    wide = np.sqrt(df / rng.chisquare(df, (draws, 1)))
    drawn = means + wide * rng.multivariate_normal(np.zeros(len(means)), covariance, draws, method="eigh")
    if calibration is None:
        return np.asarray(drawn)
    return np.asarray(expit(calibration.curve.draw(logit(np.clip(drawn, EDGE, 1 - EDGE)), rng)))


def _contrast(
    paired: PairedRows,
    pair: tuple[int, int],
    shown: list[Floats],
    drawn: Floats | None,
    asked: _Asked,
) -> Contrast:
    first, second = pair
    names = paired.ads[first], paired.ads[second]
    alpha, power, look = asked.alpha, asked.power, asked.look
    differences = paired.differences(first, second)
    found = difference_interval(differences, paired.weights, level=1 - alpha)
    p_value = _p_value(found)
    win, decided = _win_probability(found), p_value is not None and p_value <= alpha
    if look is not None:
        low, high = look.intervals[names]
        decided, p_value = not low <= 0 <= high, None
        known = np.isfinite([low, high]).all()  # else too few rows
        ends = (max(-1.0, low), min(1.0, high)) if known else (None, None)
        found = replace(found, low=ends[0], high=ends[1])
    rates = paired.chances[:, first].mean(), paired.chances[:, second].mean()
    calibrated = None
    if drawn is not None:
        gaps = drawn[:, second] - drawn[:, first]
        middle, low, high = np.quantile(gaps, (0.5, alpha / 2, 1 - alpha / 2)).tolist()
        calibrated, win, decided = (middle, low, high), float((gaps > 0).mean()), not low <= 0 <= high
        rates = np.median(drawn[:, first]), np.median(drawn[:, second])
    # The spread with the same standard error without weights: weighting costs rows.
    sd = (found.se or 0.0) * len(differences) ** 0.5
    size = asked.smallest or found.mean or 0.0
    return Contrast(
        first=names[0],
        second=names[1],
        difference=found,
        p_value=None if p_value is None else min(1.0, p_value * (1 - asked.level) / alpha),
        calibrated=calibrated,
        win_probability=win,
        decided=decided,
        rows_needed=rows_needed(sd, size, alpha=alpha, power=power) if sd else None,
        detectable=detectable(sd, len(differences), alpha=alpha, power=power),
        # Live tests need the world's rates, from a calibration.
        impressions_needed=impressions_needed(*map(float, rates), alpha=alpha, power=power) if calibrated else None,
        segments=tuple(
            segments(
                paired.people,
                shown[second] - shown[first],
                attributes=asked.attributes,
                level=asked.level,
                interval=difference_interval,
            )
        ),
    )


def _p_value(found: Estimate) -> float | None:
    if found.mean is None or found.se is None:
        return None
    if found.se == 0:
        return float(found.mean == 0)
    return float(2 * stats.t.sf(abs(found.mean) / found.se, found.df))


def _win_probability(found: Estimate) -> float:
    """That the mean over people drawn likewise is above 0: Student's t posterior under a flat prior."""
    if found.mean is None or found.se is None:
        return 0.5
    if found.se == 0:
        return float(np.heaviside(found.mean, 0.5))
    return float(stats.t.cdf(found.mean / found.se, found.df))
