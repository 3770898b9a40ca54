"""Which rows of a population have the id of an earlier row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np


class Repeat(NamedTuple):
    """Row `row` has the id of the earlier row `first`, the first that has it; both count from 0."""

    row: int
    first: int
    custom_id: str


def find_repeats(ids: Callable[[], Iterable[str]]) -> tuple[int, Iterator[Repeat]]:
    """How many rows there are, and those that repeat an earlier id, in their order. `ids` gives all ids, at each call.

    One pass that keeps 8 bytes a row; a second one, as the repeats are read, only where two hashes are equal.
    """
    hashes = np.fromiter(map(hash, ids()), dtype=np.int64)
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    return len(hashes), _repeats(ids(), suspects) if suspects else iter(())


def _repeats(ids: Iterable[str], suspects: set[int]) -> Iterator[Repeat]:
    first: dict[str, int] = {}
    for row, custom_id in enumerate(ids):
        if hash(custom_id) in suspects and (before := first.setdefault(custom_id, row)) != row:
            yield Repeat(row, before, custom_id)
