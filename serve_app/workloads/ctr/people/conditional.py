"""Attributes that depend on others by cases, and the proof that exactly one case applies.

The proof walks cells of the parents' supports: one per separate value, or per stretch of a number between the cases'
bounds. All people in a cell are the same to the cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from serve_app.fields import Frozen
from serve_app.workloads.ctr.people.distributions import (
    DistinctLevels,
    Distribution,
    Interval,
    Level,
    Levels,
    Support,
    Value,
    Values,
    as_text,
    identity,
)

# Per conditional; nobody can check more cases than this.
MOST_CELLS = 100_000


class Range(Frozen):
    """min ≤ x < below; one may be missing."""

    min: FiniteFloat | None = None
    below: FiniteFloat | None = None

    @model_validator(mode="after")
    def _possible(self) -> Range:
        if self.min is None and self.below is None:
            raise ValueError("give min, below or both")
        if self.min is not None and self.below is not None and self.min >= self.below:
            raise ValueError(f"min {self.min:g} is not less than below {self.below:g}")
        return self

    def holds(self, value: Any) -> bool:
        return (self.min is None or value >= self.min) and (self.below is None or value < self.below)


Condition = Range | DistinctLevels | Level


class Case(Frozen):
    """`then` applies if all `when` conditions hold: a value, a list, or a range of numbers."""

    when: dict[str, Annotated[Condition, Field(union_mode="left_to_right")]] = Field(min_length=1)
    then: Distribution

    def applies(self, person: Mapping[str, Value]) -> bool:
        return all(_test(condition)(person[parent]) for parent, condition in self.when.items())


def _test(condition: Any) -> Callable[[Any], bool]:
    if isinstance(condition, Range):
        return condition.holds
    wanted = frozenset(map(identity, _levels(condition)))
    return lambda value: identity(value) in wanted


def _levels(condition: Any) -> tuple[Value, ...]:
    return condition if isinstance(condition, tuple) else (condition,)


def _not_empty(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    if not cases:
        raise ValueError("give at least one case")
    return cases


class Conditional(Frozen):
    """The applicable case's distribution, else `otherwise`."""

    kind: Literal["conditional"]
    cases: Annotated[tuple[Case, ...], AfterValidator(_not_empty)]
    otherwise: Distribution | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parent for case in self.cases for parent in case.when))

    @property
    def branches(self) -> tuple[Distribution, ...]:
        """The cases' distributions, then `otherwise`."""
        return tuple(case.then for case in self.cases) + ((self.otherwise,) if self.otherwise else ())

    @property
    def support(self) -> Support | None:
        """Support of all branches; None unless values or a range."""
        supports = [branch.support for branch in self.branches]
        values = [value for support in supports if isinstance(support, Levels) for value in support.values]
        intervals = [support for support in supports if isinstance(support, Interval)]
        if len(intervals) == len(supports):
            ends = [(interval.low, interval.high) for interval in intervals]
            whole = all(interval.integer for interval in intervals)
            return Interval(min(low for low, _ in ends), max(high for _, high in ends), whole)
        if intervals or None in supports:
            return None
        return Levels(tuple({identity(value): value for value in values}.values()))

    def check(self, supports: Mapping[str, Support]) -> None:
        """Raise ValueError unless exactly one case applies for all attributes of these supports."""
        for number, case in enumerate(self.cases):
            for parent, condition in case.when.items():
                _check_condition(condition, supports[parent], f"cases.{number}.when.{parent}")
        used = set()
        for cell in self._cells(supports):
            applying = [number for number, case in enumerate(self.cases) if case.applies(cell)]
            who = ", ".join(f"{parent} {as_text(value)}" for parent, value in cell.items())
            if len(applying) > 1:
                raise ValueError(f"cases {applying[0]} and {applying[1]} both apply to {who}")
            if not applying and self.otherwise is None:
                raise ValueError(f"no case applies to {who}: add one, or `otherwise`")
            used.update(applying or [len(self.cases)])
        if self.otherwise is not None and len(self.cases) not in used:
            raise ValueError("otherwise: never applies, since the cases leave nobody")

    def _cells(self, supports: Mapping[str, Support]) -> Iterator[dict[str, Value]]:
        """One person per cell."""
        choices = [self._values(parent, supports[parent]) for parent in self.parents]
        if (cells := int(np.prod([len(values) for values in choices]))) > MOST_CELLS:
            raise ValueError(f"cases: {cells:,} combinations of {', '.join(self.parents)} are too many to check")
        for combination in product(*choices):
            yield dict(zip(self.parents, combination, strict=True))

    def _values(self, parent: str, support: Support) -> list[Value]:
        if isinstance(support, Levels):
            return list(support.values)
        ranges = [case.when[parent] for case in self.cases if parent in case.when]
        bounds = {end for bound in ranges if isinstance(bound, Range) for end in (bound.min, bound.below)}
        cuts = {_first(support, end) for end in bounds if end is not None}
        return [support.low, *sorted(cut for cut in cuts if cut > support.low and _occurs(support, cut))]

    def draw(self, rng: np.random.Generator, size: int) -> list[Values]:
        """Draw a block per branch, so that draws do not depend on the parents."""
        return [branch.draw(rng, size) for branch in self.branches]

    def choose(self, blocks: list[Values], people: Mapping[str, Values]) -> Values:
        chosen = blocks[-1].copy()
        for case, block in zip(self.cases, blocks, strict=False):
            applies = _applying(case, people)
            chosen[applies] = block[applies]
        return chosen


def _applying(case: Case, people: Mapping[str, Values]) -> npt.NDArray[np.bool_]:
    masks = [np.fromiter(map(_test(condition), people[parent]), dtype=bool) for parent, condition in case.when.items()]
    together: npt.NDArray[np.bool_] = np.logical_and.reduce(masks)
    return together


def _check_condition(condition: Any, support: Support, place: str) -> None:
    if isinstance(support, Interval):
        if not isinstance(condition, Range):
            raise ValueError(f"{place}: is a number, so give a range, {{min: …, below: …}}")
        first = _first(support, support.low if condition.min is None else condition.min)
        if not (_occurs(support, first) and condition.holds(first)):
            raise ValueError(f"{place}: nobody is there, the values are {support.low:g} to {support.high:g}")
    elif isinstance(condition, Range):
        numbers = [v for v in support.values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < len(support.values):
            raise ValueError(f"{place}: a range is for numbers, and the values are {_listed(support.values)}")
        if not any(map(condition.holds, numbers)):
            raise ValueError(f"{place}: nobody is there, the values are {_listed(support.values)}")
    else:
        known = set(map(identity, support.values))
        if missing := [value for value in _levels(condition) if identity(value) not in known]:
            raise ValueError(f"{place}: {as_text(missing[0])!r} is no value; these are: {_listed(support.values)}")


def _first(support: Interval, bound: float) -> float:
    """The support's first number at or above the bound, if any."""
    first = max(support.low, bound)
    return math.ceil(first) if support.integer else first


def _occurs(support: Interval, number: float) -> bool:
    # A continuous upper end has probability 0.
    return support.low <= number < support.high or (support.integer and number == support.high)


def _listed(values: tuple[Value, ...]) -> str:
    return ", ".join(as_text(value) for value in values[:12]) + (", …" if len(values) > 12 else "")
