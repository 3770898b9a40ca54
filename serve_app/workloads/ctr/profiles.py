"""Synthetic user profiles: independent draws from fixed marginals, seeded.

The marginals are the ones that users of the original know (identity bank, version 1): gender .49/.51; age
N(38, 12) truncated to [18, 85]; region and occupation uniform; income and liability buckets, marriage and
health as given below. `health_status` true means that the person *has* a condition.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    # A generator a person, not one for all: else the n-th person would depend on how many are drawn.
    return [_draw(index, np.random.default_rng((seed, index))) for index in range(size)]


def _draw(index: int, rng: np.random.Generator) -> Profile:
    ill = bool(rng.random() < CONDITION)
    return Profile(
        id=f"profile-{index:07d}",
        gender=_choice(rng, GENDERS),
        age=_age(rng),
        region=REGIONS[rng.integers(len(REGIONS))],
        occupation=OCCUPATIONS[rng.integers(len(OCCUPATIONS))],
        annual_salary=_choice(rng, SALARIES),
        liability_status=_choice(rng, LIABILITIES),
        is_married=bool(rng.random() < MARRIED),
        health_status=ill,
        illness=ILLNESSES[rng.integers(len(ILLNESSES))] if ill else None,
    )


def _choice(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _age(rng: np.random.Generator) -> int:
    while True:  # rejection: the truncated normal, not a clipped one with lumps at its ends
        age = rng.normal(AGE_MEAN, AGE_STD)
        if AGE_MIN <= age < AGE_MAX + 1:
            return int(age)
