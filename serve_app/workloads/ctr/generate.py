"""The click-through population as a generator (entry point `ctr` of `serve_app.generators`): made where it is
needed, so that no client sends it and no memory holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from pydantic import NonNegativeInt, PositiveInt

from serve_app.schema import Row
from serve_app.workloads.ctr.profiles import Profile, draw_profiles
from serve_app.workloads.ctr.prompts import asker


@dataclass(frozen=True, slots=True)
class Population:
    """Rows [start, size) of the people of a seed, made anew in each pass."""

    ask: Callable[[Profile], Row]
    size: int
    seed: int
    start: int

    def __len__(self) -> int:
        return max(0, self.size - self.start)

    def __iter__(self) -> Iterator[Row]:
        return map(self.ask, islice(draw_profiles(self.seed, self.start), len(self)))


def rows(
    ad: str, platform: str, size: PositiveInt, seed: NonNegativeInt = 42, *, start: NonNegativeInt = 0
) -> Population:
    """The rows of `render_rows(generate_profiles(size, seed), ad, platform)` from number `start` (from 0) on.

    Raises BadSettings for an empty ad or an unknown platform.
    """
    return Population(asker(ad, platform), size, seed, start)
