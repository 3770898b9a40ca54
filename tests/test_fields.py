"""Unknown fields and values name the nearest, in every model and at any depth."""

import pickle

import pytest
from pydantic import Field, ValidationError

from serve_app.errors import BadSettings
from serve_app.fields import Frozen, did_you_mean, nearest
from serve_app.mistakes import Mistake, mistakes, sharpest
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec


@pytest.mark.parametrize(
    ("written", "meant"),
    [("max_token", "max_tokens"), ("max-tokens", "max_tokens"), ("MAX_TOKENS", "max_tokens"), ("qqq", ""), (True, "")],
)
def test_the_nearest_name(written: object, meant: str) -> None:
    assert nearest(written, ["max_tokens", "temperature"]) == meant
    assert did_you_mean(written, ["max_tokens"]) == (f"; did you mean '{meant}'?" if meant else "")


ROWS = [{"custom_id": "1", "prompt": "x"}]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_token": 1}, "max_token: .*did you mean 'max_tokens'"),
        ({"lables": ["Yes"]}, "lables: .*did you mean 'labels'"),
        ({"messages": [{"role": "user", "contents": "x"}]}, r"messages\.0\.contents: .*did you mean 'content'"),
        ({"provider": {"base_url": "http://x", "modell": "m"}}, r"provider\.modell: .*did you mean 'model'"),
        ({"base_url": "http://x"}, "base_url: .*it belongs in 'provider'"),
        ({"format": "cvs"}, "format: .*did you mean 'csv'"),
        ({"endpoint": "/v1/chat/completion"}, "endpoint: .*did you mean '/v1/chat/completions'"),
        ({"max_tokens": "many"}, "max_tokens: .*valid integer"),
    ],
)
def test_a_job_that_is_misspelt_says_what_was_meant(fields: dict[str, object], said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        JobSpec.parse({"rows": ROWS, **fields})


def test_errors_keep_their_types_inputs_and_places() -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate({"rows": ROWS, "max_tokens": 0, "messages": [{}], "x": 1, "prompt": 3})
    found = {error["loc"]: (error["type"], error["input"]) for error in refused.value.errors()}
    assert found == {
        ("max_tokens",): ("greater_than_equal", 0),
        ("messages", 0, "role"): ("missing", {}),
        ("messages", 0, "content"): ("missing", {}),
        ("prompt",): ("string_type", 3),
        ("x",): ("unknown_field", 1),
    }


def test_a_model_still_travels_and_is_still_described() -> None:
    spec = JobSpec(rows=tuple(ROWS))
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert JobSpec.model_json_schema()["additionalProperties"] is False


class Inner(Frozen):
    size: int = Field(1, ge=1)


class Outer(Frozen):
    either: str | Inner = ""
    many: list[Inner] = Field(default_factory=list)


def test_of_a_union_only_the_member_that_was_meant_is_spoken_of() -> None:
    (mistake,) = mistakes(Outer, {"either": {"siz": 2}})
    assert str(mistake) == "either.siz: there is no field of this name; did you mean 'size'?"
    (mistake,) = mistakes(Outer, {"either": 3})
    assert str(mistake) == "either must be text or a mapping, not 3"


def test_the_place_has_numbers_in_brackets() -> None:
    (mistake,) = mistakes(Outer, {"many": [{}, {"size": 0}]}, ("applications", 2))
    assert str(mistake) == "applications[2].many[1].size must be a whole number of at least 1, not 0"
    (mistake,) = mistakes(Outer, {"many": {"size": 2}})
    assert str(mistake) == "many must be a list, not a mapping"


def test_two_fields_that_disagree_are_said_at_the_first_of_them() -> None:
    (mistake,) = mistakes(DriverSettings, {"chunk_rows": 2, "min_chunk_rows": 4})
    assert mistake.path == ("min_chunk_rows",)


def test_a_place_is_spoken_of_once() -> None:
    outer, inner = Mistake(("a",), "must be text, not a mapping"), Mistake(("a", "b"), "is empty")
    assert sharpest([outer, inner, inner]) == [inner]
    assert sharpest([outer]) == [outer]
