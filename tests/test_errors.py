"""The field that a BadSettings names."""

import pickle

import pydantic
import pytest
from ray.exceptions import RayTaskError

from serve_app.errors import BadSettings, UnknownOption
from serve_app.spec import JobSpec


def test_the_text_begins_with_the_field() -> None:
    error = BadSettings("the file is empty", field="source")
    assert (str(error), error.field) == ("source: the file is empty", "source")
    assert (str(BadSettings("the body is empty")), BadSettings("the body is empty").field) == (
        "the body is empty",
        None,
    )


def test_field_and_text_cross_a_process_boundary() -> None:
    for error in (UnknownOption("there is none", field="engine.x"), BadSettings("there is none")):
        came = pickle.loads(pickle.dumps(error))
        assert (type(came), str(came), came.field) == (type(error), str(error), error.field)
    raised = RayTaskError("batches", "a traceback", BadSettings("wrong", field="input_file_id"), "p", 1, "ip")
    cause = pickle.loads(pickle.dumps(raised)).as_instanceof_cause().cause
    assert (str(cause), cause.field) == ("input_file_id: wrong", "input_file_id")


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({"rows": [{}], "max_tokens": 0}, "max_tokens", "max_tokens: Input should be"),
        ({"rows": [{}], "messages": [{"role": "", "content": ""}]}, "messages.0.role", "messages.0.role: String"),
        ({"rows": [{}], "a": 1, "b": 1}, "a", "a: Extra inputs are not permitted; b: Extra inputs are not permitted"),
        ({}, None, "Value error, give one of rows, source and generator"),
    ],
)
def test_of_pydantics_errors_the_first_is_the_field_and_all_are_told(
    body: dict[str, object], field: str | None, text: str
) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        JobSpec.model_validate(body)
    error = BadSettings.of_fields(caught.value.errors())
    assert error.field == field
    assert str(error).startswith(text)


def test_the_place_above_stands_before_the_field() -> None:
    error = BadSettings.of_fields([{"loc": ("body", "seconds"), "msg": "too few"}], "expires_after")
    assert (error.field, str(error)) == ("expires_after.seconds", "expires_after.seconds: too few")
