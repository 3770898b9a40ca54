from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit, logit

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.calibration import (
    Calibration,
    Source,
    apply_calibration,
    calibrate,
    calibrated_rate,
    load_calibration,
    move_mean,
    save_calibration,
)
from serve_app.workloads.ctr.statistics.curve import Curve, fit_curve
from serve_app.workloads.ctr.statistics.estimate import Estimate, ctr
from serve_app.workloads.ctr.statistics.history import HistoricAd
from tests.workloads.ctr.made_up import results

SOURCE = Source(model="m", workload="ctr/v1")
SCORES = np.linspace(0.1, 0.6, 12)


def history(rates: np.ndarray, impressions: int = 20_000) -> list[HistoricAd]:
    return [
        HistoricAd(ad=f"ad {i}", platform="tiktok", impressions=impressions, clicks=round(rate * impressions))
        for i, rate in enumerate(rates)
    ]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(history(expit(-3 + 0.7 * logit(SCORES))), SCORES, SOURCE)


def test_a_straight_line_of_logits_is_found(calibration: Calibration) -> None:
    assert calibration.curve.method == "platt"
    assert (calibration.curve.intercept, calibration.curve.slope) == pytest.approx((-3, 0.7), abs=0.02)


def test_few_ads_are_shifted_by_one_number_of_logits() -> None:
    curve = calibrate(history(expit(-3 + logit(SCORES[:4]))), SCORES[:4], SOURCE).curve
    assert (curve.method, curve.slope) == ("shift", 1)
    assert curve.intercept == pytest.approx(-3, abs=0.02)


def test_six_ads_that_the_model_ranks_backwards_are_shifted_and_their_error_is_large() -> None:
    curve = calibrate(history(expit(-3 - logit(SCORES[:6]))), SCORES[:6], SOURCE).curve
    assert curve.method == "shift"
    assert curve.ad_error > 0.5


def test_twelve_such_ads_have_one_rate_whatever_their_score() -> None:
    curve = calibrate(history(expit(-3 - logit(SCORES))), SCORES, SOURCE).curve
    assert curve.method == "isotonic"
    assert np.ptp(curve(logit(SCORES))) == pytest.approx(0, abs=1e-12)


def test_a_rise_between_two_levels_is_fitted_by_isotonic_regression() -> None:
    scores = np.linspace(0.05, 0.7, 30)
    noise = np.random.default_rng(1).normal(0, 0.02, 30)
    rates = expit(-4.6 + 1.6 * expit(20 * (scores - 0.3)) + noise)
    assert calibrate(history(rates, 2_000_000), scores, SOURCE).curve.method == "isotonic"


def test_the_isotonic_curve_is_scipys_and_never_falls() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, 15)
    clicks = rng.integers(1, 90, 15).astype(float)
    curve = fit_curve("isotonic", x, clicks, np.full(15, 1000.0))
    assert curve is not None
    assert np.all(np.diff(curve(np.linspace(-3, 3, 200))) >= -1e-12)
    logits = np.log((clicks + 0.5) / (1000.5 - clicks))
    weights = 1 / (1 / (clicks + 0.5) + 1 / (1000.5 - clicks) + curve.ad_error**2)
    order = np.argsort(x)
    reference = optimize.isotonic_regression(logits[order], weights=weights[order]).x
    assert curve(x[order]) == pytest.approx(reference, abs=1e-6)


def test_a_line_that_falls_as_the_score_rises_is_not_fitted() -> None:
    assert fit_curve("platt", logit(SCORES), 20_000 * SCORES[::-1], np.full(12, 20_000.0)) is None


@pytest.mark.parametrize(("rates", "said"), [(np.array([0.1]), "fewer than two"), (np.zeros(6), "no clicks")])
def test_ads_that_tell_no_rate_are_refused(rates: np.ndarray, said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        calibrate(history(rates), SCORES[: len(rates)], SOURCE)


def test_each_ad_is_predicted_from_the_others_alone(calibration: Calibration) -> None:
    others = calibrate(
        [h for i, h in enumerate(history(expit(-3 + 0.7 * logit(SCORES)))) if i != 4], np.delete(SCORES, 4), SOURCE
    )
    predicted = calibrated_rate(others, Estimate(1, float(SCORES[4]), None, 0, None, None))
    assert predicted is not None
    assert calibration.ads[4].held_out == pytest.approx(predicted.ctr, rel=1e-5)


def test_applied_rows_keep_their_order_and_have_the_calibrated_mean(calibration: Calibration) -> None:
    chances = np.random.default_rng(3).beta(2, 5, 300)
    chances[7] = np.nan
    table, rate = apply_calibration(calibration, results(chances), SOURCE, "tiktok")
    assert rate is not None
    assert ctr(table, "p_click_calibrated").mean == pytest.approx(rate.ctr)
    assert table["p_click_calibrated"].null_count == 1
    moved = np.array(table["p_click_calibrated"].to_numpy(), dtype=float)
    assert np.array_equal(np.argsort(moved), np.argsort(chances))


def test_rows_without_any_answer_stay_without(calibration: Calibration) -> None:
    table, rate = apply_calibration(calibration, results([float("nan")]), SOURCE, "tiktok")
    assert rate is None
    assert table["p_click_calibrated"].null_count == 1


def test_a_weighted_mean_is_moved_by_its_weights() -> None:
    weights = np.array([1.0, 9.0])
    assert np.average(move_mean(np.array([0.2, 0.6]), weights, 0.05), weights=weights) == pytest.approx(0.05)


def test_the_file_says_all_of_it(calibration: Calibration, tmp_path: Path) -> None:
    save_calibration(calibration, tmp_path / "deep" / "c.json")
    assert load_calibration(tmp_path / "deep" / "c.json") == calibration


@pytest.mark.parametrize(
    ("change", "platform", "said"),
    [
        ({"model": "other"}, "tiktok", "model 'm', the run with 'other'"),
        ({"workload": "ctr/v9"}, "tiktok", "workload 'ctr/v1', the run with 'ctr/v9'"),
        ({"simulated": True}, "tiktok", "simulated"),
        ({}, "amazon", "no ad on 'amazon', only on tiktok"),
    ],
)
def test_another_model_prompt_or_platform_is_refused(
    calibration: Calibration, change: dict[str, object], platform: str, said: str
) -> None:
    with pytest.raises(BadSettings, match=said):
        apply_calibration(calibration, results([0.1]), SOURCE.model_copy(update=change), platform)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('calibration/1"', 'calibration/2"', "calibration/2"),
        ('"curve"', '"curvy"', "no calibration"),
        ("{", "[", "no calib"),
    ],
)
def test_a_file_of_another_format_is_refused(
    calibration: Calibration, tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "c.json"
    path.write_text(calibration.model_dump_json().replace(old, new, 1))
    with pytest.raises(BadSettings, match=said):
        load_calibration(path)


def test_draws_have_the_spread_that_the_interval_states() -> None:
    covariance = ((0.04, 0.01), (0.01, 0.02))
    curve = Curve(method="platt", ad_error=0.3, df=8, intercept=-3, slope=0.8, covariance=covariance)
    x = np.full((40_000, 1), -0.7)
    drawn = curve.draw(x, np.random.default_rng(4))[:, 0]
    error = np.hypot(curve.standard_error(x[:1, 0])[0], curve.ad_error)
    low, high = stats.t.interval(0.95, 8, loc=curve(x[:1, 0])[0], scale=error)
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([low, high], abs=0.03)


@pytest.mark.parametrize(("method", "ads"), [("shift", 6), ("platt", 12)])
def test_planted_curves_and_new_ads_lie_in_their_intervals_in_93_of_100_histories(method: str, ads: int) -> None:
    # 600 histories; with a true 95 % fewer than 93 % (558) come with probability 0.014 each; the seed is fixed.
    rng = np.random.default_rng(5)
    truth = {"shift": (-2.5, 1.0), "platt": (-3.0, 0.7)}[method]
    inside = np.zeros(2, dtype=int)
    for _ in range(600):
        x = rng.normal(-0.5, 0.8, ads + 1)
        true = truth[0] + truth[1] * x + rng.normal(0, 0.25, ads + 1)
        impressions = rng.integers(2_000, 200_000, ads)
        clicks = rng.binomial(impressions, expit(true[:-1])).astype(float)
        curve = fit_curve("shift" if method == "shift" else "platt", x[:-1], clicks, impressions.astype(float))
        assert curve is not None
        t, new = stats.t.ppf(0.975, curve.df), x[-1:]
        error = float(curve.standard_error(new)[0])
        inside[0] += abs(truth[0] + truth[1] * new[0] - curve(new)[0]) <= t * error
        inside[1] += abs(true[-1] - curve(new)[0]) <= t * np.hypot(error, curve.ad_error)
    print(f"{method}: curve and new ad inside their 95 % intervals in {inside.tolist()} of 600")
    assert (inside >= 558).all()
