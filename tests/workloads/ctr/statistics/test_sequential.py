import numpy as np
import pyarrow as pa
import pytest

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.experiment import compare
from serve_app.workloads.ctr.statistics.sequential import SequentialTest, margin
from serve_app.workloads.ctr.trial import Shown, name_arms, run_sequential, run_trial
from tests.workloads.ctr.made_up import results

ARMS = {"A": Shown("a", "tiktok"), "B": Shown("b", "tiktok")}


def test_the_margin_is_the_papers() -> None:
    # √(2·11/(100²·0.1)·log(√11/0.05)) for t = 100, ρ² = 0.1, as std_conjmix_margin of the authors' R package.
    assert margin(100, 0.1, 0.05) == pytest.approx(0.303781, abs=1e-6)


def test_batches_give_what_all_rows_at_once_give() -> None:
    rows = np.random.default_rng(0).beta(2, 6, (400, 3))
    whole, parts = SequentialTest("ABC"), SequentialTest("ABC")
    for part in np.split(rows, [3, 150, 151]):
        look = parts.add(part)
    assert look.intervals[("A", "C")] == pytest.approx(whole.add(rows).intervals[("A", "C")])


@pytest.mark.parametrize("kind", ["skewed", "binary"])
def test_of_two_equal_ads_one_is_said_to_win_in_at_most_alpha_of_500_peeked_experiments(kind: str) -> None:
    rng = np.random.default_rng(1)
    wrong = naive = 0
    for _ in range(500):
        if kind == "skewed":
            person = rng.beta(0.5, 5, 2000)
            rows = np.stack([person, person], axis=1) * rng.beta(2, 2, (2000, 2))
        else:
            rows = (rng.random((2000, 2)) < 0.1).astype(float)
        test = SequentialTest("AB", alpha=0.05)
        looks = [test.add(part) for part in np.split(rows, 40)]
        wrong += any(look.winner for look in looks)
        gaps = rows[:, 1] - rows[:, 0]
        count = np.arange(1, 2001)
        mean = np.cumsum(gaps) / count
        error = np.sqrt((np.cumsum(gaps**2) / count - mean**2) / count)
        naive += bool((np.abs(mean) > 1.96 * error)[99::50].any())
    print(f"{kind}: false winners in {wrong} of 500 (95 % intervals looked at as often: {naive})")
    assert wrong <= 25
    assert naive > 75  # else the experiment would prove nothing


def test_a_real_difference_is_found_with_fewer_rows() -> None:
    rng = np.random.default_rng(2)
    person = rng.beta(2, 6, 3000)
    chances = {"a": person, "b": person + 0.02 + rng.normal(0, 0.05, 3000)}

    def run(ad: str, platform: str, *, start: int, size: int) -> pa.Table:
        ids = [f"person-{i}" for i in range(start, start + size)]
        return results(chances[ad][start : start + size]).set_column(0, "id", pa.array(ids))

    trial = run_sequential(ARMS, run, 3000, batch=100, alpha=0.05)
    assert trial.looks[-1].winner == "B"
    assert trial.rows_saved > 2000
    found = compare(trial.results, look=trial.looks[-1])
    assert found.winner == "B"
    assert (found.contrasts[0].difference.low, found.contrasts[0].difference.high) == trial.looks[-1].intervals[
        "A", "B"
    ]
    assert found.rows == 3000 - trial.rows_saved


def test_ads_nearer_than_the_indifference_are_decided_as_equivalent() -> None:
    rng = np.random.default_rng(3)
    person = rng.beta(2, 6, 2000)
    rows = np.stack([person, person + rng.normal(0, 0.02, 2000)], axis=1)
    look = SequentialTest("AB", indifference=0.01).add(rows)
    assert look.equivalent
    assert look.winner is None
    assert look.decided


def test_a_beaten_ad_is_no_leader() -> None:
    rng = np.random.default_rng(4)
    rows = rng.beta(20, 60, (500, 3)) + np.array([0.0, 0.1, 0.1])
    assert SequentialTest("ABC").add(rows).leaders == ("B", "C")


@pytest.mark.parametrize("rows", [0, 500])
def test_no_rows_or_none_that_vary_decide_nothing(rows: int) -> None:
    assert not SequentialTest("AB").add(np.tile([0.1, 0.9], (rows, 1))).decided


def test_nothing_is_decided_before_the_least_rows() -> None:
    rows = np.random.default_rng(5).normal([0.1, 0.9], 0.01, (99, 2))
    assert not SequentialTest("AB").add(rows).decided


@pytest.mark.parametrize(
    ("rows", "said"), [(np.zeros((5, 3)), "for 2 ads"), (np.full((5, 2), np.nan), "no probability")]
)
def test_wrong_rows_are_refused(rows: np.ndarray, said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        SequentialTest("AB").add(rows)


def test_a_weighted_population_is_not_tested_in_batches() -> None:
    with pytest.raises(BadSettings, match="weighted"):
        run_sequential(ARMS, lambda *a, **k: results([0.1, 0.2], weight=[1.0, 2.0]), 4, batch=2, alpha=0.05)


def test_every_arm_is_shown_to_the_same_people() -> None:
    asked = []

    def run(ad: str, platform: str, *, start: int, size: int) -> pa.Table:
        asked.append((ad, platform, start, size))
        return results([0.1] * size)

    run_trial(name_arms(["a", "b"], ["tiktok", "amazon"]), run, 3)
    assert asked == [("a", "tiktok", 0, 3), ("b", "tiktok", 0, 3), ("a", "amazon", 0, 3), ("b", "amazon", 0, 3)]


@pytest.mark.parametrize(("ads", "said"), [(["a"], "two arms"), (["a", " a"], "of its own"), (["a", ""], "of its own")])
def test_arms_that_are_no_experiment_are_refused(ads: list[str], said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        name_arms(ads, ["tiktok"])
