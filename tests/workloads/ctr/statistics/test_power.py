import numpy as np
import pytest
from scipy import stats

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.power import detectable, impressions_needed, rows_needed


@pytest.mark.parametrize(
    ("effect", "alpha", "power", "reference"),
    # statsmodels 0.15, TTestPower().solve_power; the first is also G*Power's textbook 34.
    [(0.5, 0.05, 0.8, 33.3671), (0.1, 0.01, 0.9, 1491.2577)],
)
def test_rows_needed_are_those_of_the_exact_t_test(effect: float, alpha: float, power: float, reference: float) -> None:
    assert rows_needed(1.0, effect, alpha=alpha, power=power) == pytest.approx(np.ceil(reference), abs=1)


def test_with_the_rows_needed_the_test_has_its_power() -> None:
    # 2,000 tests of power 0.8: under 0.77 with probability 0.0005.
    rows = rows_needed(0.2, 0.03)
    assert rows is not None
    samples = np.random.default_rng(0).normal(0.03, 0.2, (2000, rows))
    assert 0.77 <= np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05) <= 0.83


def test_the_detectable_difference_is_the_one_that_needs_these_rows() -> None:
    difference = detectable(0.3, 500)
    assert difference is not None
    assert rows_needed(0.3, difference) == pytest.approx(500, abs=1)  # rounding up


def test_impressions_are_those_of_a_published_example() -> None:
    # Fleiss, Levin & Paik (2003), table A.4: P1 0.60, P2 0.70, alpha 0.05, power 0.80: 356 without the continuity
    # correction.
    assert impressions_needed(0.6, 0.7) == 356


def test_no_difference_needs_no_number_of_rows() -> None:
    assert rows_needed(0.3, 0.0) is None
    assert impressions_needed(0.1, 0.1) is None


def test_impossible_levels_are_refused() -> None:
    with pytest.raises(BadSettings, match="between 0 and 1"):
        rows_needed(1.0, 0.1, power=1.0)
