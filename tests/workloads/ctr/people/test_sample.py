"""Samples: how many of each stratum, who, and with what weight."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.profiles import Profile, generate_profiles
from serve_app.workloads.ctr.people.sample import (
    Stratifier,
    allocate,
    draw_sample,
    inclusion_probabilities,
)
from serve_app.workloads.ctr.statistics.estimate import mean_interval, rate_interval

PEOPLE = generate_profiles(3000)


def weighted(weights: list[float]) -> list[Profile]:
    return [Profile(f"p{i}", {"x": i}, "", weight=weight) for i, weight in enumerate(weights)]


def test_a_sample_is_its_seeds_and_keeps_the_peoples_order() -> None:
    by = [Stratifier("gender")]
    sample = draw_sample(PEOPLE, 300, 1, by=by)
    assert sample == draw_sample(PEOPLE, 300, 1, by=by)
    assert sample != draw_sample(PEOPLE, 300, 2, by=by)
    ids = [person.id for person in sample]
    assert ids == sorted(set(ids))


def test_proportional_strata_have_their_shares_to_one_person() -> None:
    sample = draw_sample(PEOPLE, 500, 1, by=[Stratifier("annual_salary"), Stratifier("gender")])
    population, drawn = (
        Counter((person.attributes["annual_salary"], person.attributes["gender"]) for person in some)
        for some in (PEOPLE, sample)
    )
    for stratum, people in population.items():
        assert abs(drawn[stratum] - 500 * people / len(PEOPLE)) <= 1
    assert all(math.isclose(person.weight, 1, rel_tol=0.15) for person in sample)


def test_equal_strata_are_equal_and_weigh_what_they_stand_for() -> None:
    sample = draw_sample(PEOPLE, 500, 1, by=[Stratifier("annual_salary")], allocation="equal")
    drawn = Counter(person.attributes["annual_salary"] for person in sample)
    assert set(drawn.values()) == {100}
    weight: Counter[object] = Counter()
    for person in sample:
        weight[person.attributes["annual_salary"]] += person.weight  # type: ignore[assignment]
    for salary, people in Counter(person.attributes["annual_salary"] for person in PEOPLE).items():
        assert weight[salary] / 500 == pytest.approx(people / len(PEOPLE))


def test_numbers_are_cut_in_bands() -> None:
    by = Stratifier.parse("age:30,45")
    names = {by.stratum(person): person.attributes["age"] for person in PEOPLE}
    assert set(names) == {"age below 30", "age from 30 below 45", "age from 45"}
    assert by.stratum(Profile("x", {"age": 30}, "")) == "age from 30 below 45"


@pytest.mark.parametrize(
    ("text", "size", "problem"),
    [
        ("gendre", 10, "'gendre' is no attribute; these are: gender, age"),
        ("gender:3", 10, "'gender' has cuts, but 'Female' is no number"),
        ("age:45,30", 10, "rising numbers"),
        ("age:x", 10, "'x' is not a list of numbers"),
        ("age:nan", 10, "rising numbers"),
        (":3", 10, "write an attribute"),
        ("occupation", 14, "15 strata are too many"),
        ("gender", 3001, "3001 of 3000 people cannot be drawn"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused(text: str, size: int, problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        draw_sample(PEOPLE, size, 1, by=[Stratifier.parse(text)])


@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 50)), min_size=1, max_size=12), st.data())
@settings(deadline=None)
def test_an_allocation_is_whole_gives_each_stratum_one_and_none_more_than_it_has(
    strata: list[tuple[float, int]], data: st.DataObject
) -> None:
    shares, most = np.array([share for share, _ in strata]), np.array([people for _, people in strata])
    size = data.draw(st.integers(len(strata), int(most.sum())))
    counts = allocate(size, shares, most)
    assert counts.sum() == size
    assert (counts >= 1).all()
    assert (counts <= most).all()


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.data())
@settings(deadline=None)
def test_inclusion_probabilities_sum_to_the_sample_and_follow_the_weights(
    weights: list[float], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(weights)))
    chances = inclusion_probabilities(np.array(weights), count)
    assert chances.sum() == pytest.approx(count)
    assert (chances <= 1 + 1e-12).all()
    uncertain = chances < 1
    ratios = chances[uncertain] / np.array(weights)[uncertain]
    assert ratios == pytest.approx(np.full(len(ratios), ratios[0] if len(ratios) else 0))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.integers(0, 100), st.data())
@settings(deadline=None)
def test_a_weighted_sample_has_the_asked_number_of_different_people(
    weights: list[float], seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(weights)))
    sample = draw_sample(weighted(weights), count, seed)
    assert len({person.id for person in sample}) == count
    assert sum(person.weight for person in sample) == pytest.approx(count)


def test_people_are_drawn_as_often_as_their_weights_say() -> None:
    weights = [1.0, 2.0, 3.0, 4.0, 30.0]
    drawn: Counter[str] = Counter()
    repeats = 2000
    for seed in range(repeats):
        drawn.update(person.id for person in draw_sample(weighted(weights), 2, seed))
    assert drawn["p4"] == repeats  # 30 of 40, of 2: more than once, so for certain
    for i in range(4):
        assert stats.binomtest(drawn[f"p{i}"], repeats, weights[i] / 10).pvalue > 0.001


def test_a_weighted_mean_is_unbiased_where_the_plain_one_is_not() -> None:
    share = {"20-40k": 0.1, "40-60k": 0.1, "60-90k": 0.2, "90-140k": 0.3, "140-250k": 0.9}
    truth = sum(share[str(person.attributes["annual_salary"])] for person in PEOPLE) / len(PEOPLE)
    sample = draw_sample(PEOPLE, 500, 1, by=[Stratifier("annual_salary")], allocation="equal")
    values = [share[str(person.attributes["annual_salary"])] for person in sample]
    found = rate_interval(np.array(values), np.array([person.weight for person in sample]))
    assert found.low is not None
    assert found.high is not None
    assert found.mean == pytest.approx(truth)
    assert found.low < truth < found.high
    assert abs(sum(values) / len(values) - truth) > 0.1


def test_with_equal_weights_the_interval_is_students_t() -> None:
    shares = [0.1, 0.2, 0.4, 0.7]
    found = mean_interval(np.array(shares), np.array([3.0] * 4))
    reference = stats.ttest_1samp(shares, 0).confidence_interval(0.95)
    assert found is not None
    assert found.mean == pytest.approx(0.35)
    assert found.high == pytest.approx(float(reference.high))
    assert found.low == pytest.approx(float(reference.low))


def test_nobody_has_no_mean() -> None:
    assert rate_interval(np.array([]), np.array([])).mean is None
