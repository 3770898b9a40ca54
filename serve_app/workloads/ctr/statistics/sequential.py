"""Stops an experiment once decided, looking after every batch, with the error of a single look.

An ordinary interval, looked at repeatedly, eventually excludes the truth. A confidence *sequence* holds at all looks:
the Gaussian-mixture asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences" (arXiv 2103.06476, section 2), for the mean of independent
people's differences:

    mean_t ± sd_t · √( 2(tρ² + 1)/(t²ρ²) · log(√(tρ² + 1)/α) )

It is asymptotic, so looks begin at `min_rows` rows. It covers the population's draw, not the model's error, and needs
unweighted rows in random order: shuffle stratified or sorted populations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.estimate import Floats

MIN_ROWS = 100


@dataclass(frozen=True, slots=True)
class Look:
    """The state after `rows` people: per pair (first, second) the interval of second minus first.

    `winner` beats all others; none beats `leaders`, and the rest need no rows. `equivalent`: no pair differs beyond the
    indifference. `decided`: either; then stop.
    """

    rows: int
    intervals: dict[tuple[str, str], tuple[float, float]]
    leaders: tuple[str, ...]
    winner: str | None
    equivalent: bool

    @property
    def decided(self) -> bool:
        return self.winner is not None or self.equivalent


class SequentialTest:
    """Takes batches of paired rows (`add`), and tells after each whether to stop.

    Wrong claims, at any look and pair, have total probability ≤ `alpha` (Bonferroni over pairs). The sequence is
    tightest at `planned_rows`. Ads closer than `indifference` in CTR are decided as equivalent; with 0, equal ads never
    end.
    """

    def __init__(
        self,
        ads: Sequence[str],
        *,
        alpha: float = 0.05,
        planned_rows: int = 1000,
        indifference: float = 0.0,
        min_rows: int = MIN_ROWS,
    ) -> None:
        if len(set(ads)) < 2 or len(set(ads)) < len(ads):
            raise BadSettings("a comparison needs two or more ads with different names")
        if not 0 < alpha < 1 or indifference < 0 or min_rows < 2 or planned_rows < 1:
            raise BadSettings("alpha must lie in (0, 1), indifference be ≥ 0, min_rows ≥ 2 and planned_rows ≥ 1")
        self._ads = tuple(ads)
        self._pairs = list(combinations(range(len(ads)), 2))
        self._alpha = alpha / len(self._pairs)
        self._rho2 = tuning(max(planned_rows, min_rows), self._alpha)
        self._indifference = indifference
        self._min_rows = min_rows
        self._rows = 0
        self._means = np.zeros(len(self._pairs))
        self._squares = np.zeros(len(self._pairs))

    def add(self, chances: Floats) -> Look:
        """Add `chances` (rows, ads) of people answered under every ad, in ad order; returns the look. Raises
        BadSettings for another shape or missing probabilities.
        """
        if chances.ndim != 2 or chances.shape[1] != len(self._ads):
            raise BadSettings(f"rows of shape {chances.shape} for {len(self._ads)} ads")
        if np.isnan(chances).any():
            raise BadSettings("a person has no probability under some ad: leave such people out")
        self._merge(np.stack([chances[:, second] - chances[:, first] for first, second in self._pairs], axis=1))
        return self._look()

    def _merge(self, differences: Floats) -> None:
        # Chan, Golub & LeVeque (1983): joins sums of squares without cancellation.
        rows = len(differences)
        if not rows:
            return
        means = differences.mean(axis=0)
        gap, total = means - self._means, self._rows + rows
        self._squares += ((differences - means) ** 2).sum(axis=0) + gap**2 * self._rows * rows / total
        self._means += gap * rows / total
        self._rows = total

    def _look(self) -> Look:
        half = np.full(len(self._pairs), np.inf)
        # Constant differences do not show their spread.
        if self._rows >= self._min_rows:
            known = self._squares > 0
            half[known] = np.sqrt(self._squares[known] / self._rows) * margin(self._rows, self._rho2, self._alpha)
        low, high = self._means - half, self._means + half
        beaten = {first if low[i] > 0 else second for i, (first, second) in self._strict(low, high)}
        leaders = tuple(ad for i, ad in enumerate(self._ads) if i not in beaten)
        equivalent = bool(np.all((low >= -self._indifference) & (high <= self._indifference)))
        names = [(self._ads[first], self._ads[second]) for first, second in self._pairs]
        return Look(
            rows=self._rows,
            intervals=dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True)),
            leaders=leaders,
            winner=leaders[0] if len(leaders) == 1 else None,
            equivalent=equivalent,
        )

    def _strict(self, low: Floats, high: Floats) -> list[tuple[int, tuple[int, int]]]:
        return [(i, pair) for i, pair in enumerate(self._pairs) if low[i] > 0 or high[i] < 0]


def margin(rows: int, rho2: float, alpha: float) -> float:
    """The sequence's half width after `rows` rows, in standard deviations."""
    grown = rows * rho2 + 1
    return math.sqrt(2 * grown / (rows**2 * rho2) * math.log(math.sqrt(grown) / alpha))


def tuning(rows: int, alpha: float) -> float:
    """ρ² that makes the sequence nearly narrowest at `rows` rows: (-2 log α + log(1 - 2 log α))/rows, the paper's
    approximation of the Lambert W function's lower branch."""
    surprise = -2 * math.log(alpha)
    return (surprise + math.log(surprise + 1)) / rows
