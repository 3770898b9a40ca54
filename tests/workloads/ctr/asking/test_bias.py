"""Position and wording bias: planted ones are measured and removed."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from serve_app.schema import Outcome
from serve_app.workloads.ctr.asking.answers import read_answers
from serve_app.workloads.ctr.asking.bias import label_bias, swap_bias
from serve_app.workloads.ctr.asking.frames import SWAPS
from serve_app.workloads.ctr.asking.predict import predict_over
from serve_app.workloads.ctr.asking.prompts import Question
from serve_app.workloads.ctr.people.profiles import Profile
from tests.workloads.ctr.fakes import outcome, scored

PEOPLE = 400


def planted(
    position: float, word: float, noise: float = 0.0
) -> tuple[list[Profile], list[Outcome], npt.NDArray[np.float64]]:
    """People with true log-odds, asked in all frames; `position` is added where clicking is named first and taken away
    where it is named last, `word` likewise by wording."""
    rng = np.random.default_rng(0)
    truth = rng.normal(-1, 1, PEOPLE)
    people = [Profile(f"p{i}", {}, "") for i in range(PEOPLE)]
    outcomes = []
    question = Question("x", swap="words")
    for person, theta in zip(people, truth, strict=True):
        for row_id, frame in zip(question.row_ids(person.id), question.frames, strict=True):
            odds = theta + rng.normal(0, noise)
            odds += position if frame.name in ("yes-no", "a-clicks") else -position
            odds += word if frame.wording == "yes/no" else -word
            outcomes.append(outcome(row_id, scored(odds, frame.click, frame.ignore)))
    return people, outcomes, truth


def test_a_planted_bias_is_measured_and_leaves_nothing_when_all_people_share_it() -> None:
    people, outcomes, truth = planted(position=0.8, word=0.5)
    answers = read_answers(Question("x", swap="words"), people, outcomes)
    found = label_bias(answers)
    assert found is not None
    assert found.wording is not None
    assert found.people == PEOPLE
    # Both wordings' distances, at the log-odds where they are: truth ± word ± position.
    distances = [expit(truth + w + 0.8) - expit(truth + w - 0.8) for w in (0.5, -0.5)]
    assert found.position.before == pytest.approx(float(np.mean(distances)))
    assert found.position.offset == pytest.approx(1.6)
    assert found.position.after == pytest.approx(0, abs=1e-12)
    assert found.wording.before == pytest.approx(float((expit(truth + 0.5) - expit(truth - 0.5)).mean()))
    assert found.wording.offset == pytest.approx(1.0)
    assert found.wording.after == pytest.approx(0, abs=1e-12)
    assert [answer.prediction.p_click for answer in answers] == pytest.approx(expit(truth).tolist())


def test_what_people_do_not_share_is_no_bias_and_stays() -> None:
    people, outcomes, _ = planted(position=0.0, word=0.0, noise=1.0)
    found = label_bias(read_answers(Question("x", swap="words"), people, outcomes))
    assert found is not None
    assert abs(found.position.offset) < 4 * np.sqrt(2 / (2 * PEOPLE))
    assert found.position.after == pytest.approx(found.position.before, rel=0.05)
    assert found.position.before > 0.1


@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=2, max_size=20))
def test_swapping_the_orders_changes_the_bias_in_sign_only(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    one, other = swap_bias(a, b), swap_bias(b, a)
    assert one.before == pytest.approx(other.before)
    assert one.after == pytest.approx(other.after)
    assert one.offset == pytest.approx(-other.offset)
    assert 0 <= one.before <= 1


@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_a_prediction_is_the_mean_log_odds_whatever_order_was_asked_first(odds: list[float]) -> None:
    frames = SWAPS["words"]
    outcomes = [outcome("x", scored(s, f.click, f.ignore, 0.5)) for s, f in zip(odds, frames, strict=True)]
    one, other = predict_over(outcomes, frames), predict_over(outcomes[::-1], frames[::-1])
    assert one.p_click == pytest.approx(float(expit(np.mean(odds))))
    assert one.p_click == pytest.approx(other.p_click)
    assert one.label_mass == pytest.approx(0.5)


def test_without_swapped_labels_or_people_there_is_no_bias_to_tell() -> None:
    people, outcomes, _ = planted(0.8, 0)
    assert label_bias([]) is None
    assert label_bias(read_answers(Question("x"), people, outcomes)) is None
    assert label_bias(read_answers(Question("x", swap="order"), people[:1], outcomes)) is None


def test_explanations_have_no_labels_and_so_no_bias() -> None:
    people, _, _ = planted(0.8, 0)
    texts = ('{"reasoning": "x", "will_click": true, "confidence": 70}', "no JSON")
    values = [{"text": text, "finish_reason": "stop"} for text in texts]
    outcomes = [outcome(person.id, value) for person, value in zip(people[:2], values, strict=True)]
    assert label_bias(read_answers(Question("x", mode="explain"), people[:2], outcomes)) is None


def test_a_person_without_an_answer_in_one_frame_has_no_prediction() -> None:
    people, outcomes, _ = planted(0.8, 0)
    lost = outcome("p0#no-yes", None, status="failed", error="lost")
    answers = read_answers(Question("x", swap="order"), people[:3], [*outcomes, lost])
    assert answers[0].prediction.p_click is None
    assert (answers[0].provenance["status"], answers[0].provenance["error"]) == ("failed", "lost")
    assert answers[1].prediction.p_click is not None
    found = label_bias(answers)
    assert found is not None
    assert found.people == 2
