"""Identity banks: what they draw, and what they refuse."""

import hashlib
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from serve_app.workloads.ctr.people.bank import PACKAGED, load_bank
from serve_app.workloads.ctr.people.conditional import Conditional
from serve_app.workloads.ctr.people.distributions import (
    Bernoulli,
    Categorical,
    Constant,
    Subset,
    TruncatedNormal,
    Uniform,
)
from serve_app.workloads.ctr.people.profiles import BLOCK, Profile, draw_profiles, generate_profiles

PEOPLE = 8000
# Of one test; there are some dozens, at fixed seeds.
ALPHA = 0.001


@pytest.fixture(scope="module")
def people() -> dict[str, list[Profile]]:
    return {name: generate_profiles(PEOPLE, seed=7, bank=name) for name in PACKAGED}


def check_distribution(distribution: Any, values: list[Any], name: str) -> None:
    """The values are draws of the distribution, by a chi-square or a binomial test."""
    if isinstance(distribution, Categorical | Uniform):
        shares = (
            distribution.shares
            if isinstance(distribution, Categorical)
            else dict.fromkeys(distribution.values, 1 / len(distribution.values))
        )
        seen = Counter(values)
        assert set(seen) <= set(shares)
        possible = {value: share for value, share in shares.items() if share}
        assert set(seen) <= set(possible), name
        expected = [share * len(values) for share in possible.values()]
        assert stats.chisquare([seen[value] for value in possible], expected).pvalue > ALPHA, name
    elif isinstance(distribution, Bernoulli):
        assert stats.binomtest(sum(values), len(values), distribution.p).pvalue > ALPHA, name
    elif isinstance(distribution, TruncatedNormal):
        d = distribution
        kept = stats.truncnorm((d.min - d.mean) / d.std, (d.max + 1 - d.mean) / d.std, loc=d.mean, scale=d.std)
        bounds = np.quantile(np.array(values), np.linspace(0, 1, 9)[1:-1]).round()
        edges = np.unique(np.concatenate(([d.min], bounds, [d.max + 1])))
        expected = (np.diff(kept.cdf(edges)) * len(values)).tolist()
        observed, _ = np.histogram(values, edges)
        assert min(values) >= d.min, name
        assert max(values) <= d.max, name
        assert stats.chisquare(observed, expected).pvalue > ALPHA, name
    elif isinstance(distribution, Subset):
        subsets = [value.split(", ") for value in values]
        assert all(len(set(subset)) == distribution.size for subset in subsets)
        chosen = Counter(one for subset in subsets for one in subset)
        for one in distribution.values:
            share = distribution.size / len(distribution.values)
            assert stats.binomtest(chosen[one], len(values), share).pvalue > ALPHA, name
    else:
        assert isinstance(distribution, Constant)
        assert set(values) == {distribution.value}


@pytest.mark.parametrize("name", PACKAGED)
def test_marginals_and_conditionals_are_those_of_the_bank(name: str, people: dict[str, list[Profile]]) -> None:
    bank = load_bank(name)
    for attribute, distribution in bank.attributes.items():
        if not isinstance(distribution, Conditional):
            check_distribution(distribution, [person.attributes[attribute] for person in people[name]], attribute)
            continue
        for number, case in enumerate(distribution.cases):
            some = [p.attributes[attribute] for p in people[name] if case.applies(p.attributes)]
            assert len(some) > 100
            check_distribution(case.then, some, f"{attribute}, case {number}")


def test_the_default_banks_ages_are_the_truncated_normal_of_the_facts(people: dict[str, list[Profile]]) -> None:
    rng = np.random.default_rng(0)
    # Ages are rounded down: uniform noise makes them continuous again, up to what is linear within a year.
    ages = np.array([person.attributes["age"] for person in people["default"]]) + rng.random(PEOPLE)
    assert stats.kstest(ages, stats.truncnorm((18 - 38) / 12, (86 - 38) / 12, loc=38, scale=12).cdf).pvalue > ALPHA


def test_attributes_that_are_drawn_independently_are_independent(people: dict[str, list[Profile]]) -> None:
    names = ("gender", "region", "annual_salary", "liability_status", "is_married", "health_status")
    for i, one in enumerate(names):
        for other in names[:i]:
            pairs = Counter((str(p.attributes[one]), str(p.attributes[other])) for p in people["default"])
            rows, columns = sorted({a for a, _ in pairs}), sorted({b for _, b in pairs})
            table = [[pairs[a, b] for b in columns] for a in rows]
            assert stats.chi2_contingency(table).pvalue > ALPHA, (one, other)


def test_the_people_of_seed_42_are_those_that_they_always_were() -> None:
    people = [{"id": person.id, **person.attributes} for person in generate_profiles(3000)]
    assert people[1] == {
        "id": "profile-0000001", "gender": "Male", "age": 28, "region": "Dallas, TX", "occupation": "Lawyer",
        "annual_salary": "40-60k", "liability_status": "5-20k", "is_married": False, "health_status": True,
        "illness": "Depression",
    }  # fmt: skip
    assert list(people[0]) == ["id", "gender", "age", "region", "occupation", "annual_salary", "liability_status",
                               "is_married", "health_status", "illness"]  # fmt: skip
    digest = hashlib.sha256(json.dumps(people, sort_keys=True).encode()).hexdigest()
    assert digest == "89d804d35e0687b74fb0b37f297d82fe5db4ece5fcc39eef8928fb0e9b3ea76d"


def test_the_default_bank_tells_the_model_nothing_of_health_and_the_rich_one_does() -> None:
    def told(bank: str) -> str:
        return " ".join(person.description for person in generate_profiles(300, bank=bank))

    assert load_bank("default").sensitive == ("health_status", "illness")
    assert not {"Depression", "Diabetes", "healthy"} & set(re.split(r"[ ,;]+", told("default")))
    assert {"Depression", "Diabetes", "healthy"} <= set(re.split(r"[ ,;]+", told("rich")))


def test_the_default_bank_describes_people_in_few_words() -> None:
    assert [person.description for person in generate_profiles(2)] == [
        "Female, 28, married, New York, NY, Accountant, earns 60-90k, owes 0-5k",
        "Male, 28, single, Dallas, TX, Lawyer, earns 40-60k, owes 5-20k",
    ]


@pytest.mark.parametrize("name", PACKAGED)
@given(start=st.integers(0, 2 * BLOCK), count=st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_the_nth_person_depends_neither_on_how_many_are_drawn_nor_on_the_start(
    name: str, start: int, count: int
) -> None:
    drawn = draw_profiles(5, start, name)
    some = [next(drawn) for _ in range(count)]
    assert some == generate_profiles(start + count, 5, name)[start:]


def test_another_seed_gives_other_people() -> None:
    assert generate_profiles(50) != generate_profiles(50, seed=43)
