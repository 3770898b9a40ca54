"""The paper's algorithm and its published code's, which differ in objective, temperature, α and consistency fix.

Wen et al. 2025 (arXiv 2506.10139), sections 2.2 and 2.3, algorithms 1 and 2; code: Jiaxin-Wen/Unsupervised-Elicitation,
src/experiments/ICM.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.errors import BadSettings

# Added before the logarithm (the code's solution_extraction.py), so that one hopeless label does not dominate.
EPSILON = 1e-5
Logprobs = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Variant:
    """`predictability` is P(D) of labels (of labelled examples, in order) and their leave-one-out log-probabilities.
    `cooling` is β·log(·) of (β, iteration from 1, accepted proposals). `alphas` follow one another when too many
    proposals are rejected. `both_false`: Algorithm 2 may resolve a contradiction by (0, 0). `forced_fix`: its first
    resolution is taken even if U falls."""

    name: str
    predictability: Callable[[Sequence[int], Logprobs], float]
    cooling: Callable[[float, int, int], float]
    beta: float
    alphas: tuple[float, ...]
    both_false: bool
    forced_fix: bool


def summed_logprob(labels: Sequence[int], logprobs: Logprobs) -> float:
    """Σ_i log p(y_i | x_i, D∖i): equation 1 of the paper."""
    return math.fsum(_log(pair[label]) for label, pair in zip(labels, logprobs, strict=True))


def mean_margin(labels: Sequence[int], logprobs: Logprobs) -> float:
    """The code's: mean of log p(y_i | …) − log p(other label | …); 0 if empty."""
    margins = [_log(pair[label]) - _log(pair[1 - label]) for label, pair in zip(labels, logprobs, strict=True)]
    return math.fsum(margins) / len(margins) if margins else 0.0


def _log(logprob: float) -> float:
    return math.log(math.exp(logprob) + EPSILON)


PAPER = Variant(
    name="paper",
    predictability=summed_logprob,
    cooling=lambda beta, iteration, accepted: beta * math.log(iteration),
    beta=0.99,
    # Appendix: begin with 50, lower to 20–30 if too many are rejected. Below 20 is ours, for less sure models: an
    # example added with probability 0.75 costs 0.3·α, at T of 1 to 3.
    alphas=(50.0, 30.0, 20.0, 10.0, 5.0, 2.0),
    both_false=True,
    forced_fix=False,
)
ORIGINAL = Variant(
    name="original",
    predictability=mean_margin,
    cooling=lambda beta, iteration, accepted: beta * math.log(1 + accepted),
    beta=2.0,
    alphas=(30.0,),
    both_false=False,
    forced_fix=True,
)
VARIANTS = {variant.name: variant for variant in (PAPER, ORIGINAL)}


def variant_of(name: str) -> Variant:
    """By name. Raises BadSettings."""
    if name not in VARIANTS:
        raise BadSettings(f"--variant '{name}' is unknown: use one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
