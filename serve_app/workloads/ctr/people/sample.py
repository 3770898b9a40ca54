"""Seeded samples of people, stratified, weighted, or both.

Within a stratum people are drawn without replacement, with probabilities proportional to weight, by systematic sampling
of a shuffled list (Madow 1949, doi:10.1214/aoms/1177729988), whose inclusion probabilities are exact; equal weights
make it simple random sampling. Anyone whose probability exceeds 1 is certain. A drawn person's weight is the own weight
over that probability (Horvitz and Thompson 1952), scaled to mean 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.describe import UNKNOWN
from serve_app.workloads.ctr.people.distributions import as_text
from serve_app.workloads.ctr.people.profiles import Profile

Allocation = Literal["proportional", "equal"]
# An uncut number would have a stratum per value.
MOST_STRATA = 200
_Reals = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stratifier:
    """An attribute whose values are strata; `cuts` begin strata of numbers."""

    attribute: str
    cuts: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Stratifier:
        """`gender`, or `age:30,45,60` for below 30, 30 to below 45, and so on. Raises BadSettings."""
        attribute, _, listed = text.partition(":")
        try:
            cuts = tuple(float(cut) for cut in listed.split(",")) if listed else ()
        except ValueError:
            raise BadSettings(f"--stratify {text}: '{listed}' is not a list of numbers") from None
        if not attribute or not np.isfinite(cuts).all() or any(np.diff(cuts) <= 0):
            raise BadSettings(f"--stratify {text}: write an attribute, or attribute:30,45,60 with rising numbers")
        return cls(attribute, cuts)

    def stratum(self, person: Profile) -> str:
        """The person's stratum; missing values form one too. Raises BadSettings."""
        if self.attribute not in person.attributes:
            return f"{self.attribute} {UNKNOWN}"
        value = person.attributes[self.attribute]
        if not self.cuts:
            return f"{self.attribute} {as_text(value)}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadSettings(f"--stratify: '{self.attribute}' has cuts, but {as_text(value)!r} is no number")
        band = int(np.searchsorted(self.cuts, value, side="right"))
        low = f"from {self.cuts[band - 1]:g}" if band else ""
        high = f"below {self.cuts[band]:g}" if band < len(self.cuts) else ""
        return " ".join(filter(None, (self.attribute, low, high)))


def draw_sample(
    people: Sequence[Profile],
    size: int,
    seed: int,
    *,
    by: Sequence[Stratifier] = (),
    allocation: Allocation = "proportional",
) -> list[Profile]:
    """`size` people, in order, with weights.

    Proportional allocation gives strata their share of weight, equal allocation the same number; small strata give all
    and others more. Raises BadSettings for more than there are, or fewer than one per stratum.
    """
    if not 1 <= size <= len(people):
        raise BadSettings(f"--population-size: {size} of {len(people)} people cannot be drawn")
    rng = np.random.default_rng((seed, len(people)))
    strata = _strata(people, by)
    if len(strata) > min(size, MOST_STRATA):
        raise BadSettings(
            f"--stratify: {len(strata)} strata are too many (at most {MOST_STRATA}, and one person each): raise "
            "--population-size, or cut numbers, as in age:30,45,60"
        )
    weights = np.array([person.weight for person in people])
    totals = np.array([weights[members].sum() for members in strata.values()])
    shares = totals if allocation == "proportional" else np.ones(len(strata))
    counts = allocate(size, shares, np.array([len(members) for members in strata.values()]))
    drawn: dict[int, float] = {}
    for members, count in zip(strata.values(), counts.tolist(), strict=True):
        chances = inclusion_probabilities(weights[members], count)
        for i in _systematic(chances, rng):
            drawn[members[i]] = weights[members[i]] / chances[i]
    mean = sum(drawn.values()) / len(drawn)
    return [replace(people[i], weight=float(weight / mean)) for i, weight in sorted(drawn.items())]


def _strata(people: Sequence[Profile], by: Sequence[Stratifier]) -> dict[tuple[str, ...], list[int]]:
    known = dict.fromkeys(name for person in people for name in person.attributes)
    for one in by:
        if one.attribute not in known:
            raise BadSettings(f"--stratify: '{one.attribute}' is no attribute; these are: {', '.join(known)}")
    members: dict[tuple[str, ...], list[int]] = {}
    for i, person in enumerate(people):
        members.setdefault(tuple(one.stratum(person) for one in by), []).append(i)
    return dict(sorted(members.items()))


def allocate(size: int, shares: _Reals, most: _Counts) -> _Counts:
    """Whole numbers that sum to `size`, proportional to `shares`, from 1 to `most`. The largest remainders take the
    rest (Hamilton's method).
    """
    counts = np.ones(len(shares), dtype=np.int64)
    while (left := size - int(counts.sum())) > 0:
        # The proportional shortfall of strata with more people.
        open_ = counts < most
        wanted = np.where(open_, np.maximum(size * shares / shares[open_].sum() - counts, 0), 0.0)
        exact = wanted / wanted.sum() * left
        step = np.minimum(np.floor(exact).astype(np.int64), most - counts)
        if not step.any():
            largest = np.argsort(-exact, kind="stable")[:left]
            step[largest] = np.minimum(1, (most - counts)[largest])
        counts += step
    return counts


def inclusion_probabilities(weights: _Reals, count: int) -> _Reals:
    """Probabilities proportional to weights, at most 1, that sum to `count`."""
    chances = np.zeros(len(weights))
    certain = np.zeros(len(weights), dtype=bool)
    while True:
        rest = count - int(certain.sum())
        chances = np.where(certain, 1.0, rest * weights / max(weights[~certain].sum(), np.finfo(float).tiny))
        if not (above := ~certain & (chances >= 1)).any():
            return chances
        certain |= above


def _systematic(chances: _Reals, rng: np.random.Generator) -> list[int]:
    order = rng.permutation(len(chances))
    bounds = np.cumsum(chances[order])
    marks = np.arange(round(bounds[-1])) + rng.random()
    # Equals the count but for rounding; no mark may exceed it.
    bounds[-1] = max(bounds[-1], np.ceil(marks[-1]))
    return [int(i) for i in order[np.searchsorted(bounds, marks, side="right")]]
