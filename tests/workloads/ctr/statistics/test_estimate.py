import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.estimate import ctr, difference_interval, mean_interval, rate_interval
from tests.workloads.ctr.made_up import results


def test_without_weights_the_interval_is_students_t() -> None:
    values = np.array([0.1, 0.2, 0.4, 0.7])
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = mean_interval(values, level=0.9)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))


def test_a_weight_of_two_has_the_mean_of_a_row_that_stands_twice() -> None:
    assert mean_interval(np.array([0.1, 0.7]), np.array([1.0, 2.0])).mean == pytest.approx(1.5 / 3)


def test_a_weighted_interval_covers_the_whole_populations_mean_in_93_of_100_samples() -> None:
    # A group that is half of the people and a tenth of the sample; 1,000 samples: a true 95 % falls under 93 % with
    # probability 0.002.
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        rare = rng.random(400) < 0.1
        values = np.where(rare, 0.6, 0.2) + rng.normal(0, 0.1, 400)
        found = mean_interval(values, np.where(rare, 0.5 / 0.1, 0.5 / 0.9))
        hits += (found.low or 1) <= 0.4 <= (found.high or 0)
    assert hits >= 930


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_rates_interval_lies_within_0_and_1_and_around_the_mean(chances: list[float]) -> None:
    found = rate_interval(np.array(chances))
    assert found.low is not None
    assert found.high is not None
    assert found.mean is not None
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1


def test_a_rates_interval_is_students_t_of_its_logit() -> None:
    values = np.array([0.1, 0.2, 0.4, 0.7])
    plain, found = mean_interval(values), rate_interval(values)
    assert (found.mean, found.se, found.df) == (plain.mean, plain.se, plain.df)
    half = ((plain.high or 0) - 0.35) / (0.35 * 0.65)
    assert (found.low, found.high) == pytest.approx((expit(logit(0.35) - half), expit(logit(0.35) + half)))


def test_a_rates_interval_of_few_skewed_probabilities_covers_the_truth_in_90_of_100_samples() -> None:
    # Student's t of the mean itself covers it in 86.
    rng = np.random.default_rng(0)
    found = [rate_interval(rng.beta(0.5, 20, 10)) for _ in range(2000)]
    assert np.mean([(one.low or 1) <= 0.5 / 20.5 <= (one.high or 0) for one in found]) > 0.9


def test_a_differences_interval_ends_at_minus_1_and_1() -> None:
    found = difference_interval(np.array([-1.0, 1.0]))
    assert (found.low, found.high) == (-1, 1)
    narrow = np.array([-0.1, 0.1, 0.3])
    assert difference_interval(narrow) == mean_interval(narrow)


@pytest.mark.parametrize("chances", [[], [0.3], [float("nan"), float("nan")]])
def test_too_few_answers_give_no_interval_and_no_error(chances: list[float]) -> None:
    assert ctr(results(chances)).low is None


def test_a_weight_that_is_no_positive_number_names_its_row() -> None:
    with pytest.raises(BadSettings, match="'weight', row 2"):
        ctr(results([0.1, 0.2], weight=[1.0, 0.0]))
