import numpy as np
import pytest
from scipy import stats

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.estimate import ctr, mean_interval, rate_interval
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


def test_a_rates_interval_ends_at_0_and_1() -> None:
    found = rate_interval(np.array([0.0, 0.0, 0.3]))
    assert found.low == 0


@pytest.mark.parametrize("chances", [[], [0.3], [float("nan"), float("nan")]])
def test_too_few_answers_give_no_interval_and_no_error(chances: list[float]) -> None:
    assert ctr(results(chances)).low is None


def test_a_weight_that_is_no_positive_number_names_its_row() -> None:
    with pytest.raises(BadSettings, match="'weight', row 2"):
        ctr(results([0.1, 0.2], weight=[1.0, 0.0]))
