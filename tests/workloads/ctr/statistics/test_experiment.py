from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.calibration import Calibration, Source, calibrate
from serve_app.workloads.ctr.statistics.experiment import compare
from serve_app.workloads.ctr.statistics.history import HistoricAd
from serve_app.workloads.ctr.statistics.pairing import pair_rows
from tests.workloads.ctr.made_up import results


def two_ads(rows: int = 200, gap: float = 0.02) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    person = rng.beta(2, 6, rows)
    return {
        "A": results(person, city=rng.choice(["x", "y"], rows)),
        "B": results(np.clip(person + gap + rng.normal(0, 0.05, rows), 0, 1)),
    }


def test_the_paired_difference_is_scipys_paired_t_test() -> None:
    ads = two_ads()
    a, b = (np.array(ads[ad]["p_click"]) for ad in "AB")
    reference = stats.ttest_rel(b, a)
    (found,) = compare(ads).contrasts
    interval = reference.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(reference.pvalue)


def test_without_a_prior_the_win_probability_is_the_one_sided_p_value() -> None:
    ads = two_ads(gap=0.003)
    a, b = (np.array(ads[ad]["p_click"]) for ad in "AB")
    (found,) = compare(ads).contrasts
    assert found.win_probability == pytest.approx(stats.ttest_rel(b, a, alternative="less").pvalue)


def test_pairs_are_joined_by_id_whatever_the_order_and_without_those_not_answered() -> None:
    first = results([0.1, 0.2, float("nan"), 0.4])
    second = results([0.5, float("nan"), 0.7, 0.8]).take([3, 2, 1, 0])
    paired = pair_rows({"A": first, "B": second})
    assert paired.chances.tolist() == [[0.1, 0.5], [0.4, 0.8]]
    assert paired.people["id"].to_pylist() == ["person-0", "person-3"]
    assert paired.dropped == 2


@pytest.mark.parametrize(
    ("ads", "said"),
    [
        ({"A": results([0.1])}, "at least two"),
        ({"A": results([0.1]), "B": results([float("nan")])}, "no person was answered"),
        ({"A": results([0.1, 0.2]).take([0, 0]), "B": results([0.1])}, "'person-0' twice"),
    ],
)
def test_results_that_cannot_be_paired_are_refused(ads: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        compare(ads)


def test_equal_ads_are_undecided_and_as_likely_to_win() -> None:
    found = compare({"A": results([0.1, 0.2, 0.3]), "B": results([0.1, 0.2, 0.3])})
    assert found.winner is None
    assert (found.contrasts[0].win_probability, found.contrasts[0].rows_needed) == (0.5, None)
    assert [arm.best_probability for arm in found.arms] == [0.5, 0.5]


def test_the_best_of_three_is_found_and_probabilities_sum_to_one() -> None:
    rng = np.random.default_rng(1)
    person = rng.beta(2, 6, 400)
    gaps = {"A": 0.0, "B": 0.3, "C": 0.1}
    ads = {ad: results(expit(logit(person) + gap + rng.normal(0, 0.2, 400))) for ad, gap in gaps.items()}
    found = compare(ads)
    assert found.winner == "B"
    assert sum(arm.best_probability for arm in found.arms) == pytest.approx(1)
    assert len(found.contrasts) == 3


def test_more_ads_widen_each_interval() -> None:
    ads = two_ads()
    three = compare(ads | {"C": ads["A"]}).contrasts[0].difference
    two = compare(ads).contrasts[0].difference
    assert (three.high or 0) - (three.low or 0) > (two.high or 0) - (two.low or 0)


def test_a_false_winner_among_equal_ads_comes_in_at_most_5_of_100_experiments() -> None:
    # 500 experiments of three equal ads; a true 5 % exceeds 37 with probability 0.01.
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(500):
        person = rng.normal(-1.5, 0.7, 120)
        ads = {name: results(expit(person + rng.normal(0, 0.4, 120))) for name in "ABC"}
        wrong += any(c.decided for c in compare(ads, draws=10).contrasts)
    assert wrong <= 37


def test_a_segment_in_which_the_difference_is_another_is_found() -> None:
    rng = np.random.default_rng(3)
    city, person = rng.choice(["x", "y", "z"], 600), rng.beta(2, 6, 600)
    other = np.clip(person + np.where(city == "x", 0.08, 0.0) + rng.normal(0, 0.03, 600), 0, 1)
    (found,) = compare({"A": results(person, city=city), "B": results(other)}).contrasts
    segment = next(s for s in found.segments if s.level == "x")
    assert segment.differs
    assert segment.estimate.mean == pytest.approx(0.08, abs=0.01)


World = tuple[Calibration, dict[str, Any], list[float], float]


def worlds(rng: np.random.Generator, repeats: int) -> Iterator[World]:
    """Known preferences: a person likes ad a with logit μ_a + e; the model's score of an ad says its CTR but for an ad
    error. Gives the calibration, two new ads' results, their true CTRs and the true difference of their scores."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    for _ in range(repeats):
        appeal = rng.normal(-0.6, 0.7, 11)
        person = rng.normal(0, 0.7, 300)
        chances = expit(appeal[:, None] + person + rng.normal(0, 0.2, (11, 300)))
        spread = np.hypot(0.7, 0.2)
        score = expit(appeal[:, None] + spread * nodes) @ weights / weights.sum()
        rates = expit(-3 + 0.8 * logit(score) + rng.normal(0, 0.2, 11))
        impressions = rng.integers(5_000, 200_000, 9)
        ads = [
            HistoricAd(ad=f"ad {i}", platform="tiktok", impressions=int(n), clicks=int(rng.binomial(n, rates[i])))
            for i, n in enumerate(impressions)
        ]
        made = calibrate(ads, chances[:9].mean(axis=1), Source(model="m", workload="ctr/v1"))
        new = {"A": results(chances[9]), "B": results(chances[10])}
        yield made, new, rates[9:].tolist(), float(score[10] - score[9])


@pytest.mark.timeout(600)
def test_planted_preferences_are_recovered_within_the_intervals_in_93_of_100_worlds() -> None:
    # 1,000 worlds; with a true 95 % fewer than 93 % (930) come with probability 0.002 each; the seed is fixed.
    inside = dict.fromkeys(("score difference", "CTR of A", "CTR of B", "CTR difference"), 0)
    for made, new, rates, gap in worlds(np.random.default_rng(4), 1000):
        (raw,) = compare(new, draws=10).contrasts
        found = compare(new, calibration=made, draws=1000)
        _, low, high = found.contrasts[0].calibrated or (0.0, 0.0, 0.0)
        inside["score difference"] += (raw.difference.low or 1) <= gap <= (raw.difference.high or 0)
        inside["CTR difference"] += low <= rates[1] - rates[0] <= high
        for arm, rate in zip(found.arms, rates, strict=True):
            assert arm.calibrated is not None
            inside[f"CTR of {arm.ad}"] += arm.calibrated.low <= rate <= arm.calibrated.high
    print(f"inside their 95 % intervals, of 1,000 worlds: {inside}")
    assert min(inside.values()) >= 930


def test_a_calibration_makes_a_sure_win_less_sure() -> None:
    made, _, _, _ = next(worlds(np.random.default_rng(5), 1))
    ads = two_ads(2000, 0.01)
    assert compare(ads).contrasts[0].win_probability > 0.99
    assert 0.5 < compare(ads, calibration=made).contrasts[0].win_probability < 0.9
