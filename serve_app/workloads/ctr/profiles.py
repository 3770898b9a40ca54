"""Synthetic user profiles: independent draws from fixed marginals, seeded.

The marginals are the ones that users of the original know (identity bank, version 1): gender .49/.51; age
N(38, 12) truncated to [18, 85]; region and occupation uniform; income and liability buckets, marriage and
health as given below. `health_status` true means that the person *has* a condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

GENDERS = {"Male": 0.49, "Female": 0.51}
AGE_MEAN, AGE_STD, AGE_MIN, AGE_MAX = 38.0, 12.0, 18, 85
REGIONS = (
    "New York, NY", "Los Angeles, CA", "Chicago, IL", "Houston, TX", "Phoenix, AZ",
    "Philadelphia, PA", "San Antonio, TX", "San Diego, CA", "Dallas, TX", "Seattle, WA",
)  # fmt: skip
OCCUPATIONS = (
    "Teacher", "Nurse", "Software Engineer", "Sales Associate", "Electrician",
    "Accountant", "Truck Driver", "Chef", "Graphic Designer", "Police Officer",
    "Marketing Manager", "Construction Worker", "Retail Manager", "Lawyer", "Student",
)  # fmt: skip
SALARIES = {"20-40k": 0.22, "40-60k": 0.28, "60-90k": 0.25, "90-140k": 0.18, "140-250k": 0.07}
LIABILITIES = {"0-5k": 0.30, "5-20k": 0.35, "20-60k": 0.22, "60-150k": 0.10, "150-400k": 0.03}
MARRIED = 0.46
CONDITION = 0.16
ILLNESSES = ("Hypertension", "Diabetes", "Asthma", "Arthritis", "Depression", "Migraine", "Heart disease")


# People drawn together. Part of what a seed means: with another number, it gives other people.
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Profile:
    """One person. Salary and liability are US dollars a year and in all, as buckets."""

    id: str
    gender: str
    age: int
    region: str
    occupation: str
    annual_salary: str
    liability_status: str
    is_married: bool
    health_status: bool
    illness: str | None


def generate_profiles(size: int, seed: int = 42) -> list[Profile]:
    """`size` profiles. The same seed gives the same people, and a longer population starts with the shorter one."""
    return list(islice(draw_profiles(seed), size))


def draw_profiles(seed: int = 42, start: int = 0) -> Iterator[Profile]:
    """The people of a seed without end, from number `start` (from 0) on, BLOCK of them in memory at a time."""
    for block in count(start // BLOCK):
        people = _draw(block, np.random.default_rng((seed, block)))
        yield from islice(people, max(0, start - block * BLOCK), None)


def _draw(block: int, rng: np.random.Generator) -> Iterator[Profile]:
    # Whole blocks, each with a generator of its own, however few are taken: so the n-th person depends on neither
    # how many are drawn nor where the drawing starts.
    genders, salaries, liabilities = (_choices(rng, shares) for shares in (GENDERS, SALARIES, LIABILITIES))
    regions, occupations, illnesses = (_choices(rng, names) for names in (REGIONS, OCCUPATIONS, ILLNESSES))
    married, ill = ((rng.random(BLOCK) < share).tolist() for share in (MARRIED, CONDITION))
    ages = _ages(rng)
    for i in range(BLOCK):
        yield Profile(
            id=f"profile-{block * BLOCK + i:07d}",
            gender=genders[i],
            age=ages[i],
            region=regions[i],
            occupation=occupations[i],
            annual_salary=salaries[i],
            liability_status=liabilities[i],
            is_married=married[i],
            health_status=ill[i],
            illness=illnesses[i] if ill[i] else None,
        )


def _choices(rng: np.random.Generator, names: dict[str, float] | tuple[str, ...]) -> list[str]:
    shares = list(names.values()) if isinstance(names, dict) else None
    known = list(names)
    return [known[i] for i in rng.choice(len(known), BLOCK, p=shares).tolist()]


def _ages(rng: np.random.Generator) -> list[int]:
    ages = rng.normal(AGE_MEAN, AGE_STD, BLOCK)
    # Rejection: the truncated normal, not a clipped one with lumps at its ends.
    while (outside := (ages < AGE_MIN) | (ages >= AGE_MAX + 1)).any():
        ages[outside] = rng.normal(AGE_MEAN, AGE_STD, int(outside.sum()))
    return [int(age) for age in ages.tolist()]
