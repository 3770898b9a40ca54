"""A search's iterations, temperature, α and random numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydantic import Field

from serve_app.fields import Frozen
from serve_app.workloads.icm.variants import Variant, variant_of


class SearchSettings(Frozen):
    """Defaults are the paper's (appendix: T0 10, T_min 0.01, β 0.99, 8 seeds, up to 10 consistency fix rounds)."""

    variant: str = "paper"
    iterations: int = Field(3000, ge=1)
    num_seed: int = Field(8, ge=1, description="examples that begin with a random label")
    seed: int = Field(0, ge=0)
    alpha: float | None = Field(None, gt=0, description="the first α; default: the variant's")
    fixed_alpha: bool = Field(False, description="do not lower it")
    initial_temperature: float = Field(10.0, gt=0)
    final_temperature: float = Field(0.01, gt=0)
    beta: float | None = Field(None, ge=0, description="how fast it cools; default: the variant's")
    fix_rounds: int = Field(10, ge=0, description="of Algorithm 2")
    group_weight: float = Field(100.0, gt=0, description="of unlabelled examples whose group has labelled ones")
    rejection_window: int = Field(10, ge=1, description="proposals over which rejections are counted for α")
    most_rejected: float = Field(0.9, gt=0, lt=1, description="share of them beyond which α is lowered")
    speculate: int = Field(0, ge=0, description="later proposals that are scored with one, at most")

    @property
    def rules(self) -> Variant:
        """The variant. Raises BadSettings for an unknown name."""
        return variant_of(self.variant)

    @property
    def alphas(self) -> tuple[float, ...]:
        """α and its lower values."""
        first = self.rules.alphas[0] if self.alpha is None else self.alpha
        return (first, *(() if self.fixed_alpha else (alpha for alpha in self.rules.alphas if alpha < first)))

    def temperature(self, iteration: int, accepted: int) -> float:
        """max(T_min, T0/(1 + cooling)): line 4 of Algorithm 1; `iteration` starts at 1."""
        beta = self.rules.beta if self.beta is None else self.beta
        cooled = self.initial_temperature / (1 + self.rules.cooling(beta, iteration, accepted))
        return max(self.final_temperature, cooled)


class Draws(NamedTuple):
    """One iteration's random numbers, uniform in [0, 1). They depend only on seed and iteration, not on scoring ahead
    or resuming."""

    example: float
    accept: float
    pairs: tuple[float, ...]


# Separate random streams per use are independent.
STREAMS = ("", "iteration", "seeds", "places", "sample", "baseline", "shuffle")


def stream(seed: int, use: str, number: int = 0) -> np.random.Generator:
    """A seed's random numbers for one use."""
    return np.random.default_rng((seed, number, STREAMS.index(use)))


@lru_cache(maxsize=4096)  # reread while scoring ahead
def draw(seed: int, iteration: int, rounds: int) -> Draws:
    """An iteration's numbers; 0 is the initial labelling."""
    example, accept, *pairs = stream(seed, "iteration", iteration).random(2 + rounds).tolist()
    return Draws(example, accept, tuple(pairs))
