"""People, each with an id, attributes and a description; and the people that a bank's seed gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from serve_app.workloads.ctr.people.bank import Bank, load_bank
from serve_app.workloads.ctr.people.distributions import Value

# People drawn together. Part of what a seed means: with another number, it gives other people.
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Profile:
    """One person. `attributes` are in the order of the results' columns; `description` is what the model reads.

    `weight` is how many people of the population this one stands for, over the sample's mean. A row of a user's file
    that makes no person has an `error` and nothing else.
    """

    id: str
    attributes: Mapping[str, Value]
    description: str
    weight: float = 1.0
    error: str | None = None


def generate_profiles(size: int, seed: int = 42, bank: str | Bank = "default") -> list[Profile]:
    """`size` profiles. The same seed gives the same people, and a longer population starts with the shorter one."""
    return list(islice(draw_profiles(seed, bank=bank), size))


def draw_profiles(seed: int = 42, start: int = 0, bank: str | Bank = "default") -> Iterator[Profile]:
    """The people of a bank's seed without end, from number `start` (from 0) on, BLOCK of them in memory at a time.

    Raises BadSettings for a bank that is none.
    """
    people = load_bank(bank)
    for block in count(start // BLOCK):
        yield from islice(_draw(people, seed, block), max(0, start - block * BLOCK), None)


def _draw(bank: Bank, seed: int, block: int) -> Iterator[Profile]:
    # Whole blocks, each with a generator of its own, however few are taken: so the n-th person depends on neither
    # how many are drawn nor where the drawing starts.
    columns = bank.draw(np.random.default_rng((seed, block)), BLOCK)
    names, describe = tuple(columns), bank.description.of
    for number, values in enumerate(zip(*columns.values(), strict=True), block * BLOCK):
        person = dict(zip(names, values, strict=True))
        yield Profile(f"profile-{number:07d}", person, describe(person))
