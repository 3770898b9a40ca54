"""People needed to tell two ads apart, and the detectable difference."""

from __future__ import annotations

import math

from scipy import stats

from serve_app.errors import BadSettings


def rows_needed(sd: float, difference: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """People for a paired two-sided t test of `difference` with spread `sd`.

    n = ((z₁₋α/₂ + z_power)·sd/difference)² + z₁₋α/₂²/2 (Guenther 1981, normal approximation corrected for t). None for
    no difference.
    """
    if difference == 0:
        return None
    normal, critical = _quantiles(alpha, power)
    return max(2, math.ceil((normal * sd / difference) ** 2 + critical**2 / 2))


def detectable(sd: float, rows: int, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Inverse of `rows_needed`: the smallest difference at that power; None for too few rows."""
    normal, critical = _quantiles(alpha, power)
    left = rows - critical**2 / 2
    return None if left <= 0 else normal * sd / left**0.5


def impressions_needed(rate: float, other: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Impressions of *each* ad for a live A/B test of two rates: Fleiss, Levin & Paik (2003), "Statistical methods for
    rates and proportions", eq. 4.14. None for equal rates."""
    if rate == other:
        return None
    critical, enough = (float(stats.norm.ppf(q)) for q in (1 - alpha / 2, power))
    middle = (rate + other) / 2
    spread = critical * math.sqrt(2 * middle * (1 - middle))
    spread += enough * math.sqrt(rate * (1 - rate) + other * (1 - other))
    return math.ceil((spread / abs(rate - other)) ** 2)


def _quantiles(alpha: float, power: float) -> tuple[float, float]:
    if not 0 < alpha < 1 or not 0 < power < 1:
        raise BadSettings(f"alpha {alpha} and power {power} must lie between 0 and 1")
    critical = float(stats.norm.ppf(1 - alpha / 2))
    return critical + float(stats.norm.ppf(power)), critical
