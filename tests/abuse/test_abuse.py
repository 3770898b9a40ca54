"""The short version of `make abuse`."""

from __future__ import annotations

import json

from tests.abuse.__main__ import abuse
from tests.abuse.asking import Answer, Request
from tests.abuse.attack import wrong_with
from tests.abuse.heavy import SMALL
from tests.abuse.site import CANARY


def test_a_thousand_hostile_inputs_do_no_harm() -> None:
    result, _ = abuse(inputs=1000, seed=20261128, heavy=SMALL[:2])
    assert result["failures"] == []
    assert result["inputs"] >= 1000


def test_what_is_wrong_is_found() -> None:
    request, good = Request("GET", "/"), {"message": "m", "type": "t", "param": None, "code": None}
    shaped = json.dumps({"error": good}).encode()
    for answer, kinds in (
        (Answer(200, body=b"ok"), []),
        (Answer(400, body=shaped), []),
        (Answer(400, body=b'{"detail": "x"}'), ["shape"]),
        (Answer(500, body=shaped), ["5xx"]),
        (Answer(200, body=CANARY.encode()), ["leak"]),
        (Answer(error=TimeoutError()), ["slow"]),
        (Answer(500, error=KeyError("x")), ["crash"]),
        (Answer(), ["crash"]),
        (Answer(200, headers=((b"x", b"a\r\nb: c"),)), ["shape"]),
    ):
        assert [kind for kind, _ in wrong_with(request, answer)] == kinds, answer
