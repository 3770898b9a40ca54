"""People with id, attributes and description; people of a bank's seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from serve_app.workloads.ctr.people.bank import Bank, load_bank
from serve_app.workloads.ctr.people.distributions import Value

# People per draw. Another number gives a seed other people.
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Profile:
    """One person. `attributes` follow the results' columns; the model reads `description`. `weight` is the number of
    people represented, over the sample's mean. An invalid file row has only an `error`.
    """

    id: str
    attributes: Mapping[str, Value]
    description: str
    weight: float = 1.0
    error: str | None = None


def generate_profiles(size: int, seed: int = 42, bank: str | Bank = "default") -> list[Profile]:
    """`size` profiles. The same seed gives the same people; a longer population starts with the shorter."""
    return list(islice(draw_profiles(seed, bank=bank), size))


def draw_profiles(seed: int = 42, start: int = 0, bank: str | Bank = "default") -> Iterator[Profile]:
    """Endless people of a bank's seed from number `start` (from 0), BLOCK of them in memory. Raises BadSettings for an
    invalid bank.
    """
    people = load_bank(bank)
    for block in count(start // BLOCK):
        yield from islice(_draw(people, seed, block), max(0, start - block * BLOCK), None)


def _draw(bank: Bank, seed: int, block: int) -> Iterator[Profile]:
    # Whole blocks with own generators: the n-th person depends neither on the number drawn nor on the start.
    columns = bank.draw(np.random.default_rng((seed, block)), BLOCK)
    names, describe = tuple(columns), bank.description.of
    for number, values in enumerate(zip(*columns.values(), strict=True), block * BLOCK):
        person = dict(zip(names, values, strict=True))
        yield Profile(f"profile-{number:07d}", person, describe(person))
