import math
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from serve_app.schema import Outcome
from serve_app.workloads.ctr.asking.answers import read_answers, table
from serve_app.workloads.ctr.asking.predict import Prediction, predict, rates
from serve_app.workloads.ctr.asking.prompts import Question
from serve_app.workloads.ctr.people.profiles import Profile, generate_profiles
from serve_app.workloads.ctr.report import figures as report
from serve_app.workloads.ctr.statistics.estimate import rate_interval


def outcome(profile: Profile, yes: float, no: float) -> Outcome:
    value = {"logprobs": {"Yes": math.log(yes), "No": math.log(no)}}
    return Outcome(profile.id, "h", "ok", value, None, 1, "r", "m", "v", False, 100, 64, 1, 5.0, "2026-01-01")


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
    rows = table(read_answers(Question("x"), people, [failed])).to_pylist()
    assert [row["status"] for row in rows] == ["failed", "missing"]
    assert [row["click"] for row in rows] == [None, None]
    assert [row["p_click"] for row in rows] == [None, None]


def test_nothing_answered_gives_no_rate() -> None:
    assert rates([Prediction(None, None)]).ctr is None


def test_the_interval_is_that_of_a_rate() -> None:
    chances = [0.1, 0.2, 0.4, 0.7]
    found = rates([Prediction(p, 1.0) for p in chances])
    reference = rate_interval(np.array(chances))
    assert found.ctr_low == pytest.approx(reference.low)
    assert found.ctr_high == pytest.approx(reference.high)
    assert found.expected_clicks == pytest.approx(1.4)
    assert found.high_confidence_share == pytest.approx(0.5)


def test_results_are_written_as_parquet_and_csv_with_provenance(tmp_path: Path) -> None:
    people = generate_profiles(3)
    results = table(read_answers(Question("x"), people, [outcome(person, 0.2, 0.3) for person in people]))
    parquet, csv, _ = report.write(tmp_path / "job", results, {"rows": 3})
    for read in (pa_parquet.read_table(parquet), pa_csv.read_csv(csv)):
        assert read.num_rows == 3
        assert {"id", "click", "p_click", "replica", "model", "engine_version", "cached_tokens"} <= set(
            read.column_names
        )
        assert read["replica"].to_pylist() == ["r"] * 3
