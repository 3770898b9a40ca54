import math
from collections import Counter
from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy import stats

from serve_app.errors import BadSettings
from serve_app.schema import Outcome
from serve_app.workloads.ctr import profiles as bank
from serve_app.workloads.ctr import report
from serve_app.workloads.ctr.predict import Prediction, cost, predict, rates, table
from serve_app.workloads.ctr.profiles import Profile, generate_profiles
from serve_app.workloads.ctr.prompts import render_rows


def outcome(profile: Profile, yes: float, no: float) -> Outcome:
    value = {"logprobs": {"Yes": math.log(yes), "No": math.log(no)}}
    return Outcome(profile.id, "h", "ok", value, None, 1, "r", "m", "v", False, 100, 64, 1, 5.0, "2026-01-01")


def test_the_same_seed_gives_the_same_people_and_a_longer_population_starts_with_them() -> None:
    assert generate_profiles(50) == generate_profiles(50)
    assert generate_profiles(80)[:50] == generate_profiles(50)
    assert generate_profiles(50) != generate_profiles(50, seed=43)


def test_marginals_are_those_of_the_bank() -> None:
    people = generate_profiles(4000)
    specified: dict[str, dict[str, float]] = {
        "gender": bank.GENDERS,
        "annual_salary": bank.SALARIES,
        "liability_status": bank.LIABILITIES,
        "region": dict.fromkeys(bank.REGIONS, 1 / len(bank.REGIONS)),
        "occupation": dict.fromkeys(bank.OCCUPATIONS, 1 / len(bank.OCCUPATIONS)),
    }
    for name, shares in specified.items():
        seen = Counter(getattr(person, name) for person in people)
        assert set(seen) == set(shares)
        observed = [seen[value] for value in shares]
        assert stats.chisquare(observed, [share * len(people) for share in shares.values()]).pvalue > 0.001, name
    for name, share in (("is_married", bank.MARRIED), ("health_status", bank.CONDITION)):
        hits = sum(getattr(person, name) for person in people)
        assert stats.binomtest(hits, len(people), share).pvalue > 0.001, name
    assert all(18 <= person.age <= 85 for person in people)
    assert 37 < sum(person.age for person in people) / len(people) < 40
    assert all((person.illness is not None) == person.health_status for person in people)


def test_prompts_share_all_but_the_profile() -> None:
    rows = render_rows(generate_profiles(20), "A new phone", "tiktok")
    assert len({row.messages[0]["content"] for row in rows}) == 1
    assert "A new phone" in rows[0].messages[0]["content"]
    assert len({row.messages[1]["content"] for row in rows}) == 20


@pytest.mark.parametrize(
    ("size", "ad", "platform", "problem"),
    [(1, "  ", "tiktok", "--ad is empty"), (0, "x", "tiktok", "population-size"), (1, "x", "radio", "'radio'")],
)
def test_bad_input_names_the_flag(size: int, ad: str, platform: str, problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        render_rows(generate_profiles(size), ad, platform)


@given(st.floats(1e-6, 0.5), st.floats(1e-6, 0.5))
def test_a_prediction_is_the_share_of_yes_and_the_mass_of_both(yes: float, no: float) -> None:
    prediction = predict(outcome(generate_profiles(1)[0], yes, no))
    assert prediction.p_click == pytest.approx(yes / (yes + no))
    assert prediction.label_mass == pytest.approx(yes + no)
    assert prediction.click == ((prediction.p_click or 0) >= 0.5)


def test_a_failed_row_has_no_prediction_and_is_not_counted() -> None:
    people = generate_profiles(2)
    failed = replace(outcome(people[0], 0.1, 0.1), status="failed", value=None, error="lost")
    found = rates([predict(failed), predict(outcome(people[1], 0.3, 0.1))])
    assert (found.answered, found.clicks) == (1, 1)
    assert found.ctr == pytest.approx(0.75)
    rows = table(people, [failed]).to_pylist()
    assert [row["status"] for row in rows] == ["failed", "missing"]
    assert [row["click"] for row in rows] == [None, None]
    assert [row["p_click"] for row in rows] == [None, None]


def test_nothing_answered_gives_no_rate() -> None:
    assert rates([Prediction(None, None)]).ctr is None


def test_the_interval_is_students_t_for_the_mean() -> None:
    chances = [0.1, 0.2, 0.4, 0.7]
    found = rates([Prediction(p, 1.0) for p in chances])
    reference = stats.ttest_1samp(chances, 0).confidence_interval(0.95)
    assert found.ctr_low == pytest.approx(max(0, float(reference.low)))
    assert found.ctr_high == pytest.approx(float(reference.high))
    assert found.expected_clicks == pytest.approx(1.4)
    assert found.high_confidence_share == pytest.approx(0.5)


def test_cost_is_hours_times_replicas_times_price() -> None:
    assert cost(1800, 2, 3.0, 600) == {"cost": pytest.approx(3.0), "cost_per_1000": pytest.approx(5.0)}


def test_results_are_written_as_parquet_and_csv_with_provenance(tmp_path: Path) -> None:
    people = generate_profiles(3)
    results = table(people, [outcome(person, 0.2, 0.3) for person in people])
    parquet, csv, _ = report.write(tmp_path / "job", results, {"rows": 3})
    for read in (pa_parquet.read_table(parquet), pa_csv.read_csv(csv)):
        assert read.num_rows == 3
        assert {"id", "click", "p_click", "replica", "model", "engine_version", "cached_tokens"} <= set(
            read.column_names
        )
        assert read["replica"].to_pylist() == ["r"] * 3
