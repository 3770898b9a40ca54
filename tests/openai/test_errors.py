"""The body, type, code and status of an error, by our exceptions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.errors import (
    BadSettings,
    EngineFailed,
    JobConflict,
    JobNotFound,
    NoSuchFile,
    ServeAppError,
    ServerUnavailable,
    StoreError,
)
from serve_app.openai.errors import ErrorAnswer, model_not_found, of_exception, retry_after, unavailable


def body_of(answer: ErrorAnswer) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.body)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadSettings("no"), 400, "invalid_request_error"),
        (JobNotFound("no"), 404, "invalid_request_error"),
        (NoSuchFile("no"), 404, "invalid_request_error"),
        (JobConflict("no"), 409, "invalid_request_error"),
        (StoreError("no"), 500, "server_error"),
        (EngineFailed("no"), 500, "server_error"),
        (ServerUnavailable("no"), 503, "server_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_exception_has_its_status_and_the_type_that_goes_with_it(
    error: ServeAppError, status: int, kind: str
) -> None:
    answer = of_exception(error)
    assert answer.status == status
    assert body_of(answer) == {"message": "no", "type": kind, "param": None, "code": None}


def test_param_is_the_field_of_the_exception_and_never_read_out_of_its_words() -> None:
    named = body_of(of_exception(BadSettings("it is empty", field="rows[3]")))
    assert (named["param"], named["message"]) == ("rows[3]", "rows[3]: it is empty")
    assert body_of(of_exception(BadSettings("note: it is empty")))["param"] is None
    assert body_of(of_exception(StoreError("store: it is away")))["param"] is None


def test_who_may_come_back_is_told_when_in_whole_seconds_and_not_too_early() -> None:
    assert retry_after(0.01) == (b"retry-after", b"1")
    assert retry_after(1.2) == (b"retry-after", b"2")
    for answer in (unavailable("no replica"), of_exception(ServerUnavailable("no driver"))):
        assert (answer.status, dict(answer.headers)) == (503, {b"retry-after": b"5"})


def test_both_forms_of_the_answer_have_the_same_body_and_headers() -> None:
    answer = unavailable("no replica", 7)
    start, body = answer.messages([(b"x-request-id", b"1")])
    response = answer.response()
    assert (start["status"], body["body"]) == (response.status_code, response.body)
    assert isinstance(start["headers"], list)
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert headers == {**response.headers, "x-request-id": "1"}


def test_half_a_surrogate_pair_in_a_name_is_answered_with_a_question_mark() -> None:
    assert body_of(model_not_found("a\udcff"))["message"] == "The model `a?` does not exist"
    assert body_of(of_exception(BadSettings("no such field", field="\ud800")))["param"] == "?"
