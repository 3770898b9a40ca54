"""Label probabilities from what a provider shows of its most likely tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch.provider.answers import Logprobs, Position, Token, label_logprobs
from serve_app.dispatch.provider.pool import ProviderPool
from serve_app.errors import BadSettings
from serve_app.schema import Sampling
from serve_app.spec import Provider
from tests.dispatch.provider.fakes import Asked, FakeProvider, Reply, answer, ask, chat, error, plain

pytestmark = pytest.mark.timeout(60)


def shown(**probabilities: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": math.log(p), "bytes": []} for token, p in probabilities.items()]
    return {"content": [{"token": top[0]["token"], "logprob": -0.1, "top_logprobs": top}]}


def test_a_chats_labels_get_the_exact_probability_of_the_tokens_that_are_them() -> None:
    tokens = {"yes": 0.25, " yes": 0.25, "Yes": 0.2, " no": 0.1, "yes ": 0.05, "  no": 0.05}
    app = FakeProvider(Reply(content=answer("yes", logprobs=shown(**tokens))))
    (completion,) = ask(app, chat("well?"), labels=(" yes", "no"), sampling=Sampling(500, 0.3))
    assert completion.status == "ok"
    assert completion.text is None
    assert [math.exp(logprob) for logprob in completion.label_logprobs] == pytest.approx([0.5, 0.1], rel=1e-12)
    asked = app.asked[0].body
    assert (asked["max_tokens"], asked["logprobs"], asked["top_logprobs"], asked["temperature"]) == (1, True, 20, 1.0)


def test_a_plain_completions_labels_are_read_in_its_own_format() -> None:
    top = [{" yes": math.log(0.6), "no": math.log(0.3)}]
    app = FakeProvider(Reply(content={"choices": [{"text": " yes", "logprobs": {"top_logprobs": top}}]}))
    (completion,) = ask(app, plain("well?"), labels=("yes", "no"))
    assert [math.exp(logprob) for logprob in completion.label_logprobs] == pytest.approx([0.6, 0.3], rel=1e-12)
    assert (app.asked[0].body["logprobs"], app.asked[0].body["max_tokens"]) == (20, 1)


def test_a_label_that_is_not_shown_makes_the_row_invalid_and_no_number_is_made_up() -> None:
    tokens = {"yes": 0.9, **{f"t{i}": 0.001 for i in range(19)}}
    app = FakeProvider(Reply(content=answer("yes", logprobs=shown(**tokens))))
    (completion,) = ask(app, chat("well?"), labels=("yes", "no"))
    assert (completion.status, completion.label_logprobs) == ("invalid", ())
    assert "'no' not among the 20 most likely tokens" in (completion.error or "")
    assert "'yes' not" not in (completion.error or "")
    assert (completion.prompt_tokens, completion.completion_tokens) == (7, 3), "it is paid for all the same"


def test_the_stand_in_for_an_unknown_log_probability_is_none() -> None:
    logprobs = Logprobs(content=[Position([Token("yes", -0.1), Token("no", -9999.0)])])
    with pytest.raises(ValueError, match="'no' not among"):
        label_logprobs(("yes", "no"), logprobs)


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": None}, {"top_logprobs": [None]}])
def test_an_answer_without_log_probabilities_is_invalid(logprobs: Any) -> None:
    (completion,) = ask(FakeProvider(Reply(content=answer(logprobs=logprobs))), chat("well?"), labels=("yes", "no"))
    assert completion.status == "invalid"
    assert "shows no log-probabilities" in (completion.error or "")


def test_a_provider_that_shows_only_five_tokens_is_asked_for_five_from_then_on() -> None:
    def at_most_five(asked: Asked) -> Reply:
        if asked.body["top_logprobs"] > 5:
            return Reply(400, error("top_logprobs must be at most 5"))
        return Reply(content=answer(logprobs=shown(yes=0.5, no=0.5)))

    app = FakeProvider(default=at_most_five)
    completions = ask(app, chat("one"), chat("two"), labels=("yes", "no"))
    assert [completion.status for completion in completions] == ["ok", "ok"]
    assert [asked.body["top_logprobs"] for asked in app.asked] == [20, 5, 5]
    app.default = lambda _: Reply(400, error("this model has no logprobs"))
    assert ask(app, chat("one"), labels=("yes", "no"))[0].status == "invalid"


@given(st.dictionaries(st.text(" ynｙ", min_size=1, max_size=3), st.floats(-700, 0), min_size=1, max_size=20))
@settings(deadline=None)
def test_a_labels_probability_is_the_sum_over_its_two_spellings(shown_by_token: dict[str, float]) -> None:
    logprobs = Logprobs(top_logprobs=[dict(shown_by_token)])
    spelled = {token.removeprefix(" ") for token in shown_by_token}
    labels = tuple(label for label in spelled if label and not label.startswith(" "))
    for label, logprob in zip(labels, label_logprobs(labels, logprobs), strict=True):
        spellings = [shown_by_token[token] for token in (label, f" {label}") if token in shown_by_token]
        assert math.isclose(math.exp(logprob), math.fsum(map(math.exp, spellings)), rel_tol=1e-9)


@pytest.mark.parametrize("labels", [("yes", " yes"), ("yes", "yes"), ("yes", ""), tuple(map(str, range(21)))])
def test_labels_that_cannot_be_told_apart_or_not_all_be_shown_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(BadSettings, match="labels: "):
        ProviderPool(Provider(base_url="http://h/v1", model="m"), labels=labels)
