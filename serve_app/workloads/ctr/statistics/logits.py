"""Regression of click-through on the logit scale, where ads differ beyond click noise.

Model: clicks_a ~ Binomial(impressions_a, σ(x_a·β + u_a)), u_a ~ N(0, τ²). τ is the *ad error*: an ad's difference from
its score, whatever its impressions. Fitted by penalised quasi-likelihood (Breslow & Clayton 1993): random-effects
meta-regression of working logits and τ² by the moment equation of Paule & Mandel (1982), until they agree. With τ = 0
it is maximum likelihood logistic regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize
from scipy.special import expit

from serve_app.workloads.ctr.statistics.estimate import Floats

MAX_STEPS = 200
TOLERANCE = 1e-6  # logits


@dataclass(frozen=True, slots=True)
class Fit:
    """`coefficients` (p,), `covariance` (p, p), `ad_error` τ in logits and `df` = ads - p."""

    coefficients: Floats
    covariance: Floats
    ad_error: float
    df: int


def fit_logits(
    design: Floats, clicks: Floats, impressions: Floats, offset: Floats, *, ad_error: float | None = None
) -> Fit | None:
    """Fit coefficients for `design` (ads, p), and τ unless `ad_error` is given. None without a finite answer (too few
    ads or clicks, or equal scores)."""
    ads, size = design.shape
    if np.linalg.matrix_rank(design) < size or not 0 < clicks.sum() < impressions.sum():
        return None
    between = ad_error**2 if ad_error is not None else 0.0
    linear, _ = empirical_logits(clicks, impressions)
    for _ in range(MAX_STEPS):
        rate = expit(linear)
        variances = 1 / (impressions * rate * (1 - rate))
        working = linear - offset + (clicks / impressions - rate) * impressions * variances
        if ad_error is None:
            between = moment_variance(working, variances, design)
        coefficients, covariance = weighted_least_squares(working, variances + between, design)
        fixed = design @ coefficients
        before, linear = linear, offset + fixed + between / (variances + between) * (working - fixed)
        if np.abs(linear).max() > 30:  # separable clicks: the estimate diverges
            return None
        if np.abs(linear - before).max() < TOLERANCE:
            break
    return Fit(coefficients, covariance, between**0.5, ads - size)


def weighted_least_squares(values: Floats, variances: Floats, design: Floats) -> tuple[Floats, Floats]:
    """Coefficients (p,) and covariance (p, p) for `values` (n,) of known `variances`."""
    weighted = design / variances[:, None]
    covariance = np.asarray(np.linalg.inv(design.T @ weighted), dtype=np.float64)
    return covariance @ (weighted.T @ values), covariance


def moment_variance(values: Floats, variances: Floats, design: Floats) -> float:
    """τ² whose weighted squared residuals sum to their degrees of freedom, or 0 (Paule & Mandel)."""
    df = int(design.shape[0]) - int(design.shape[1])

    def surplus(between: float) -> float:
        coefficients, _ = weighted_least_squares(values, variances + between, design)
        squares = (values - design @ coefficients) ** 2
        return float((squares / (variances + between)).sum()) - df

    if df < 1 or surplus(0.0) <= 0:
        return 0.0
    high = float(np.var(values)) + 1e-6
    while surplus(high) > 0:
        high *= 2
    return float(optimize.brentq(surplus, 0.0, high, xtol=1e-8))


def empirical_logits(clicks: Floats, impressions: Floats) -> tuple[Floats, Floats]:
    """Logits of observed rates and variances, with half a click added per side (Haldane 1956)."""
    missed = impressions - clicks
    return np.log((clicks + 0.5) / (missed + 0.5)), 1 / (clicks + 0.5) + 1 / (missed + 0.5)
