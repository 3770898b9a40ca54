"""Fuzzing finds what it is for: tried on small applications with known faults, without an engine."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.conftest import served
from tests.contract.clamp import ABSURD, MAX_TOKENS, clamp, clamp_number
from tests.contract.fuzz import fuzz
from tests.contract.steer import ANSWERED, KEPT_FIELDS, UNTOUCHED, steer
from tests.contract.tally import KEPT_FAILURES, Tally

pytestmark = [pytest.mark.contract, pytest.mark.timeout(120)]


class Ask(BaseModel):
    number: int
    max_tokens: int = 1


def application() -> FastAPI:
    """Two sound routes, one that fails for some valid bodies, one that must not be called."""
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {}

    @app.post("/sound")
    def sound(ask: Ask) -> Ask:
        return ask

    @app.post("/fails")
    def fails(ask: Ask) -> dict[str, float]:
        return {"inverse": 1 / max(ask.number, 0)}

    @app.post("/scale_elastic_ep")
    def scale() -> None:
        raise AssertionError("an administrator's route was called")

    return app


@pytest.fixture(scope="module")
def tally() -> Tally:
    tally = Tally()
    with served(application()) as base_url:
        fuzz(base_url, requests=300, seed=1, workers=2, tally=tally)
    return tally


def test_at_least_as_many_requests_are_made_as_were_asked_for(tally: Tally) -> None:
    assert tally.total >= 300


def test_an_answer_of_the_servers_fault_is_found_and_kept_with_a_command_that_repeats_it(tally: Tally) -> None:
    assert tally.of_class(5, "POST /fails") > 0
    assert tally.of_class(5, "POST /sound") == 0
    assert tally.bad == tally.of_class(5)
    kept = [failure for failure in tally.failures if failure.route == "POST /fails"]
    assert 0 < len(kept) <= KEPT_FAILURES
    assert all(failure.status == 500 and failure.command.startswith("curl") for failure in kept)
    assert not any("Filtered" in failure.command for failure in kept)
    assert any("max_tokens" in failure.command for failure in kept)


def test_valid_and_invalid_bodies_are_sent(tally: Tally) -> None:
    assert tally.of_class(2, "POST /sound") > 10
    assert tally.of_class(4, "POST /sound") > 10


def test_administrators_routes_are_left_alone(tally: Tally) -> None:
    assert not [route for route in tally.counts if "scale" in route]


def test_the_table_adds_up(tally: Tally) -> None:
    for row in tally.table():
        assert int(row[1]) == sum(map(int, row[2:]))
    assert sum(int(row[1]) for row in tally.table()) == tally.total


def test_a_server_that_hangs_up_counts_as_no_answer() -> None:
    tally = Tally()
    tally.add("POST /x", None, lambda: ("curl", "reset"))
    tally.add("POST /x", 200, lambda: pytest.fail("an answer that is right is not described"))
    assert (tally.bad, tally.of_class(0), tally.of_class(2)) == (1, 1, 1)


# --- clamp ---

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(["max_tokens", "max_completion_tokens", "n", "prompt", "messages", "temperature", "stop"])


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON_VALUES))
def test_no_generated_chat_asks_for_more_than_a_few_tokens_unless_it_is_refused(body: dict[str, Any]) -> None:
    bounded = clamp("/v1/chat/completions", body)
    for name in ("max_tokens", "max_completion_tokens"):
        value = bounded.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert value <= MAX_TOKENS or value >= ABSURD
    assert bounded["max_tokens"] is not None
    assert not isinstance(bounded.get("prompt"), list) or len(bounded["prompt"]) <= 4


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON_VALUES))
def test_what_costs_nothing_is_left_as_it_is(body: dict[str, Any]) -> None:
    bounded = clamp("/v1/chat/completions", body)
    for name in ("temperature", "stop"):
        assert (name in bounded) == (name in body)
        assert bounded.get(name) == body.get(name)


@pytest.mark.parametrize(
    ("value", "clamped"),
    [
        (100, 4),
        (100.0, 4.0),
        ("100", "4"),
        (3, 3),
        (-5, -5),
        (10**12, 10**12),
        ("many", "many"),
        (True, True),
        ([9], [9]),
    ],
)
def test_a_number_keeps_its_type_and_an_absurd_one_its_value(value: Any, clamped: Any) -> None:
    assert clamp_number(value, 4) == clamped
    assert type(clamp_number(value, 4)) is type(value)


@pytest.mark.parametrize("body", [None, [], "text", 5, b"\xff"])
def test_a_body_that_is_no_object_is_sent_as_it_is(body: Any) -> None:
    assert clamp("/v1/completions", body) == body


def test_a_made_up_population_is_small_and_reaches_no_other_host() -> None:
    body = {"rows": [{}] * 50, "source": "http://example.com/x", "provider": {"base_url": "https://api.openai.com/v1"}}
    bounded = clamp("/v1/populations/", body)
    assert len(bounded["rows"]) == 3
    assert "://" not in bounded["source"]
    assert bounded["provider"]["base_url"].startswith("http://127.0.0.1:9")
    assert bounded["max_tokens"] == MAX_TOKENS


# --- steer ---


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON_VALUES), st.sampled_from(sorted(ANSWERED)), st.integers(0, 9))
def test_a_steered_body_is_an_answerable_one_with_a_few_made_up_fields(
    body: dict[str, Any], path: str, seed: int
) -> None:
    steered = steer(path, body, "served", seed)
    if steered is body:
        return
    answered, variants = ANSWERED[path]
    ours = [{**answered, **variant, "model": "served"} for variant in variants]
    made_up = [{name for name in steered if name not in one or steered[name] != one[name]} for one in ours]
    assert min(map(len, made_up)) <= KEPT_FIELDS
    assert all(steered[name] == body[name] for name in min(made_up, key=len))
    assert set(answered) <= set(steered)


def test_a_share_of_bodies_is_sent_as_it_was_made_up_and_a_seed_decides_which() -> None:
    bodies = [{"prompt": str(number), "model": "made up"} for number in range(1000)]
    untouched = [steer("/v1/completions", body, "served", 1) is body for body in bodies]
    assert UNTOUCHED - 0.06 < sum(untouched) / len(bodies) < UNTOUCHED + 0.06
    assert [steer("/v1/completions", body, "served", 1) is body for body in bodies] == untouched
    assert [steer("/v1/completions", body, "served", 2) is body for body in bodies] != untouched


def test_a_route_that_is_not_known_gets_bodies_as_they_are() -> None:
    body = {"prompt": "x"}
    assert steer("/elsewhere", body, "served", 1) is body
