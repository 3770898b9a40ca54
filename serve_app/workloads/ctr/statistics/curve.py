"""Three curves from score to click-through on the logit scale: shift, Platt and isotonic."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import optimize

from serve_app.workloads.ctr.statistics.estimate import Floats
from serve_app.workloads.ctr.statistics.logits import empirical_logits, fit_logits

Method = Literal["shift", "platt", "isotonic"]
# Fewer ads leave too few degrees of freedom for curve and ad error.
FEWEST_ADS: dict[Method, int] = {"shift": 2, "platt": 5, "isotonic": 10}


class Curve(BaseModel):
    """logit(CTR) as a function of logit(score), linear between the `knots`, level (isotonic) or straight (shift, Platt)
    beyond.

    shift: logit + a, the same for all ads. Platt (1999): a + b·logit. Isotonic: never-falling steps by pooling adjacent
    violators. `ad_error` is τ of `logits.py` with `df` degrees of freedom.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method
    ad_error: float = Field(ge=0)
    df: int = Field(ge=1)
    intercept: float = 0.0
    slope: float = 1.0
    covariance: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))
    knots: tuple[tuple[float, float, float], ...] = ()  # logit of score, logit of CTR, its standard error

    def __call__(self, x: Floats) -> Floats:
        """Logits of CTR for logits of scores."""
        if not self.knots:
            return self.intercept + self.slope * x
        at, level, _ = np.array(self.knots).T
        return np.asarray(np.interp(x, at, level))

    def standard_error(self, x: Floats) -> Floats:
        """The curve's own, without ad error."""
        if not self.knots:
            (a, ab), (_, b) = self.covariance
            return np.asarray(np.sqrt(np.maximum(0.0, a + 2 * ab * x + b * x**2)))
        at, _, error = np.array(self.knots).T
        return np.asarray(np.interp(x, at, error))

    def draw(self, x: Floats, rng: np.random.Generator) -> Floats:
        """Draws of logits of CTR for scores `x` (draws, ads): the curve's error, common to a draw's ads, and one ad
        error each, with Student's t's tails."""
        draws, ads = x.shape
        wide = np.sqrt(self.df / rng.chisquare(self.df, (draws, 1)))
        own = self.ad_error * rng.standard_normal((draws, ads))
        if self.knots:
            shared = self.standard_error(x) * rng.standard_normal((draws, 1))
        else:
            moved = rng.multivariate_normal(np.zeros(2), np.array(self.covariance), draws, method="eigh")
            shared = moved[:, :1] + moved[:, 1:] * x
        return np.asarray(self(x) + (shared + own) * wide)


def fit_curve(method: Method, x: Floats, clicks: Floats, impressions: Floats) -> Curve | None:
    """The method's curve through ads with logit scores `x` (ads,); None if undetermined, or if Platt's falls with the
    score."""
    if method == "isotonic":
        return _isotonic(x, clicks, impressions)
    ones = np.ones_like(x)
    if method == "shift":
        fit = fit_logits(ones[:, None], clicks, impressions, x)
        if fit is None or fit.df < 1:
            return None
        variance = float(fit.covariance[0, 0])
        covariance = ((variance, 0.0), (0.0, 0.0))
        return Curve(
            method="shift", ad_error=fit.ad_error, df=fit.df, intercept=fit.coefficients[0], covariance=covariance
        )
    fit = fit_logits(np.stack([ones, x], axis=1), clicks, impressions, np.zeros_like(x))
    if fit is None or fit.df < 1 or fit.coefficients[1] < 0:
        return None
    (a, ab), (_, b) = fit.covariance.tolist()
    intercept, slope = fit.coefficients.tolist()
    covariance = ((a, ab), (ab, b))
    return Curve(
        method="platt", ad_error=fit.ad_error, df=fit.df, intercept=intercept, slope=slope, covariance=covariance
    )


def _isotonic(x: Floats, clicks: Floats, impressions: Floats) -> Curve | None:
    at, same = np.unique(x, return_inverse=True)
    values, variances = empirical_logits(*(np.bincount(same, counts).astype(float) for counts in (clicks, impressions)))
    between = 0.0
    for _ in range(20):
        found = optimize.isotonic_regression(values, weights=1 / (variances + between))
        df = len(at) - (len(found.blocks) - 1)
        if df < 1:
            return None
        before, between = between, _excess(values - found.x, variances, df)
        if abs(between - before) < 1e-9:
            break
    edges = found.blocks.tolist()
    knots = []
    for start, end in pairwise(edges):
        error = float(1 / (1 / (variances[start:end] + between)).sum() ** 0.5)
        knots += [(float(at[i]), float(found.x[start]), error) for i in dict.fromkeys((start, end - 1))]
    return Curve(method="isotonic", ad_error=between**0.5, df=df, knots=tuple(knots))


def _excess(residuals: Floats, variances: Floats, df: int) -> float:
    """τ² for which Σ residual²/(variance + τ²) is `df`, or 0. Steps count as one parameter (Meyer & Woodroofe 2000)."""

    def surplus(between: float) -> float:
        return float((residuals**2 / (variances + between)).sum()) - df

    if surplus(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(surplus, 0.0, float((residuals**2).sum()) / df, xtol=1e-12))
