"""Distributions of one attribute.

Each draws blocks as object arrays of plain values, and knows its support. See `conditional.py` for dependent
attributes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, FiniteFloat, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator
from scipy.special import ndtr

from serve_app.fields import Frozen

# An attribute's value. YAML reads unquoted Yes and No as true and false.
Value = str | int | float | bool | None
Level = Annotated[StrictBool | StrictInt | StrictFloat | StrictStr | None, Field()]
Values = npt.NDArray[np.object_]
# Tolerance of shares' sum: float rounding, not decimals'.
SHARE_TOLERANCE = 1e-6
# Least kept share of the normal distribution, as rejection is slow in its tails.
LEAST_KEPT = 1e-3


@dataclass(frozen=True)
class Levels:
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Interval:
    """A support of all numbers, or whole ones, from `low` to `high`, inclusive."""

    low: float
    high: float
    integer: bool


Support = Levels | Interval


def _distinct(values: Sequence[Value]) -> Sequence[Value]:
    if doubles := [value for i, value in enumerate(values) if identity(value) in map(identity, values[:i])]:
        raise ValueError(f"{as_text(doubles[0])!r} is there twice")
    return values


def identity(value: Value) -> tuple[bool, Value]:
    """Separates true from 1, equal in Python."""
    return isinstance(value, bool), value


def as_text(value: Value) -> str:
    """A value in YAML and JSON: true, false, null; numbers with at most 6 digits."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
    return str(value)


def objects(values: Iterable[Any]) -> Values:
    listed = list(values)
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


DistinctLevels = Annotated[tuple[Level, ...], Field(min_length=1), AfterValidator(_distinct)]
Share = Annotated[FiniteFloat, Field(ge=0)]


class Categorical(Frozen):
    """Texts with shares that sum to 1."""

    kind: Literal["categorical"]
    shares: dict[StrictStr, Share] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Categorical:
        if abs((total := math.fsum(self.shares.values())) - 1) > SHARE_TOLERANCE:
            raise ValueError(f"shares sum to {total:.6g}, not 1")
        return self

    @property
    def support(self) -> Levels:
        """Excludes values of share 0."""
        return Levels(tuple(value for value, share in self.shares.items() if share > 0))

    def draw(self, rng: np.random.Generator, size: int) -> Values:
        shares = list(self.shares.values())
        total = math.fsum(shares)
        return objects(self.shares)[rng.choice(len(shares), size, p=[share / total for share in shares])]


class Uniform(Frozen):
    kind: Literal["uniform"]
    values: DistinctLevels

    @property
    def support(self) -> Levels:
        return Levels(self.values)

    def draw(self, rng: np.random.Generator, size: int) -> Values:
        return objects(self.values)[rng.choice(len(self.values), size)]


class Constant(Frozen):
    """One value, without a random number."""

    kind: Literal["constant"]
    value: Level

    @property
    def support(self) -> Levels:
        return Levels((self.value,))

    def draw(self, rng: np.random.Generator, size: int) -> Values:
        return objects([self.value] * size)


class Bernoulli(Frozen):
    """True with probability `p`."""

    kind: Literal["bernoulli"]
    p: FiniteFloat = Field(ge=0, le=1)

    @property
    def support(self) -> Levels:
        return Levels(tuple(value for value, share in ((True, self.p), (False, 1 - self.p)) if share > 0))

    def draw(self, rng: np.random.Generator, size: int) -> Values:
        return objects((rng.random(size) < self.p).tolist())


class TruncatedNormal(Frozen):
    """N(mean, std) on condition that it falls into [min, max]. With `integer` (the default), into [min, max + 1) and
    rounded down, like an age: k has the probability of [k, k + 1).
    """

    kind: Literal["truncated_normal"]
    mean: FiniteFloat
    std: FiniteFloat = Field(gt=0)
    min: FiniteFloat
    max: FiniteFloat
    integer: bool = True

    @model_validator(mode="after")
    def _possible(self) -> TruncatedNormal:
        if self.min > self.max or (self.min == self.max and not self.integer):
            raise ValueError(f"min {self.min:g} is not below max {self.max:g}")
        if self.integer and (self.min % 1 or self.max % 1):
            raise ValueError(f"min {self.min:g} and max {self.max:g} of whole numbers must be whole")
        low, high = (ndtr((end - self.mean) / self.std) for end in (self.min, self._end))
        if high - low < LEAST_KEPT:
            raise ValueError(
                f"only {high - low:.2g} of N({self.mean:g}, {self.std:g}) is from {self.min:g} to {self.max:g}: "
                f"move mean or range until {LEAST_KEPT:g} is"
            )
        return self

    @property
    def _end(self) -> float:
        return self.max + 1 if self.integer else self.max

    @property
    def support(self) -> Interval:
        return Interval(self.min, self.max, self.integer)

    def draw(self, rng: np.random.Generator, size: int) -> Values:
        drawn = rng.normal(self.mean, self.std, size)
        # Rejection, since clipping leaves lumps at the ends.
        while (outside := (drawn < self.min) | (drawn >= self._end)).any():
            drawn[outside] = rng.normal(self.mean, self.std, int(outside.sum()))
        return objects(np.floor(drawn).astype(int).tolist() if self.integer else drawn.tolist())


class Subset(Frozen):
    """`size` different values, each subset equally likely, as a text "a, b, c" in the values' order."""

    kind: Literal["subset"]
    values: Annotated[tuple[StrictStr, ...], Field(min_length=1), AfterValidator(_distinct)]
    size: int = Field(ge=1)

    @model_validator(mode="after")
    def _enough(self) -> Subset:
        if self.size > len(self.values):
            raise ValueError(f"size {self.size} is more than the {len(self.values)} values")
        return self

    @property
    def support(self) -> None:
        """Too many to list, so no case may depend on it."""
        return None

    def draw(self, rng: np.random.Generator, size: int) -> Values:
        ranks = rng.random((size, len(self.values))).argsort(axis=1)[:, : self.size]
        ranks.sort(axis=1)
        return objects(", ".join(self.values[i] for i in some) for some in ranks.tolist())


Distribution = Annotated[
    Categorical | Uniform | Constant | Bernoulli | TruncatedNormal | Subset, Field(discriminator="kind")
]
