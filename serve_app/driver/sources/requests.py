"""Rows that are HTTP requests: the lines of an OpenAI batch file, and of its output and error files.

Knows a line's envelope (`custom_id`, `method`, `url`, `body`) and that of an answer. Bodies pass unchanged, to and from
the engine's HTTP application. A line that is no request is a row with an error, so that one bad line does not end a
batch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import msgspec

from serve_app.driver.sources.repeats import find_repeats
from serve_app.driver.sources.template import Input
from serve_app.errors import BadSettings
from serve_app.schema import Completion, HttpResponse, Row

# In the store, the id of a row without an id of its own: ids there are unique.
_OWN_ID = re.compile(r"line-\d+-invalid")


class Problem(msgspec.Struct, frozen=True):
    """Why a line is no request, as in OpenAI's `errors`. `line` counts from 1."""

    line: int
    code: str
    message: str
    param: str | None = None
    custom_id: str | None = None


class Line(msgspec.Struct, frozen=True):
    """A request: its id, and its body as JSON."""

    custom_id: str
    body: str


def read_line(number: int, line: bytes, endpoint: str) -> Line | Problem:
    """Line `number` (from 1) of a file of requests to `endpoint`; "" stands for a line that was too long."""
    if not line:
        return Problem(number, "invalid_json_line", "the line is too long to be a request")
    try:
        fields = _decode_fields(line)
    except (ValueError, RecursionError) as error:
        return Problem(number, "invalid_json_line", f"the line is not a JSON object: {error}")
    custom_id = _text(fields.get("custom_id"))
    if not custom_id and (kind := _kind(fields.get("custom_id"))):
        wrong = f"Invalid type for 'custom_id': expected a string, but got {kind} instead."
        return Problem(number, "invalid_type", wrong, "custom_id")
    if not custom_id:
        missing = "custom_id: give each line an id, a text that is not empty"
        return Problem(number, "missing_required_parameter", missing, "custom_id")
    if _OWN_ID.fullmatch(custom_id):
        return Problem(number, "invalid_custom_id", f"custom_id: '{custom_id}' stands for bad lines", "custom_id")
    if _text(fields.get("method")) != "POST":
        return Problem(number, "invalid_method", "method: only POST is supported", "method", custom_id)
    if _text(fields.get("url")) != endpoint:
        message = f"url: it must be the batch's endpoint, {endpoint}"
        return Problem(number, "url_mismatch", message, "url", custom_id)
    body = bytes(fields.get("body", b"")).strip()
    if not body.startswith(b"{"):
        return Problem(number, "missing_required_parameter", "body: give the request as an object", "body", custom_id)
    try:
        return Line(custom_id, body.decode())
    except UnicodeDecodeError as error:
        return Problem(number, "invalid_json_line", f"body: not UTF-8: {error}", "body", custom_id)


def _text(raw: msgspec.Raw | None) -> str:
    """A JSON string's text; "" for what is none."""
    try:
        return msgspec.json.decode(raw, type=str) if raw is not None else ""
    except ValueError:
        return ""


def _kind(raw: msgspec.Raw | None) -> str:
    """What a JSON value is, as OpenAI's errors say it; "" for a string, null and nothing."""
    kinds = {"{": "an object", "[": "an array", "t": "a boolean", "f": "a boolean", '"': "", "n": "", "": ""}
    return kinds.get(bytes(raw or b"").decode("latin-1")[:1], "a number")


class RequestRows:
    """See `source.Source`. `lines` opens the file anew at each call; blank lines are no rows.

    Of lines with the same custom_id the first is the request.
    """

    def __init__(self, lines: Callable[[], Iterator[bytes]], endpoint: str) -> None:
        self._lines = lines
        self._endpoint = endpoint

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        _, repeated = self._scan
        for row, (number, line) in islice(enumerate(self._numbered()), start, stop):
            read = self._read(number, line, again=row in repeated)
            if isinstance(read, Problem):
                yield Row(_own_id(number), error=_encode(read).decode())
            else:
                yield Row(read.custom_id, prompt=read.body)

    def inputs(self) -> Iterator[Input]:
        return (Input({}, row) for row in self.rows())

    def ids(self) -> Iterator[str]:
        return (row.custom_id for row in self.rows())

    def count(self) -> int:
        """Number of rows. Raises BadSettings if no line is a request."""
        rows, _ = self._scan
        if first := next(self.problems(), None) if not self._usable() else None:
            raise BadSettings(f"no line of the file is a request to {self._endpoint}: {first.message}", field="source")
        if not rows:
            raise BadSettings("the file is empty: give a request a line", field="source")
        return rows

    def problems(self) -> Iterator[Problem]:
        """Problems of the lines that are no requests."""
        _, repeated = self._scan
        for row, (number, line) in enumerate(self._numbered()):
            if isinstance(read := self._read(number, line, again=row in repeated), Problem):
                yield read

    def _usable(self) -> bool:
        return any(isinstance(self._read(number, line), Line) for number, line in self._numbered())

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        return ((number, line) for number, line in enumerate(self._lines(), 1) if not line.isspace())

    def _read(self, number: int, line: bytes, *, again: bool = False) -> Line | Problem:
        read = read_line(number, line, self._endpoint)
        if again and isinstance(read, Line):
            message = f"custom_id: '{read.custom_id}' is an earlier line's: make ids unique"
            return Problem(number, "duplicate_custom_id", message, "custom_id", read.custom_id)
        return read

    @cached_property
    def _scan(self) -> tuple[int, frozenset[int]]:
        """How many rows there are, and which of them (from 0) repeat an earlier one's id."""
        rows, repeats = find_repeats(self._ids)
        return rows, frozenset(repeat.row for repeat in repeats)

    def _ids(self) -> Iterator[str]:
        """The id of each row; a bad line gets one that no other row has."""
        for number, line in self._numbered():
            read = self._read(number, line)
            yield read.custom_id if isinstance(read, Line) else _own_id(number)


def _own_id(number: int) -> str:
    return f"line-{number}-invalid"


# --- answers ---


def value_and_error(completion: Completion, response: HttpResponse) -> tuple[dict[str, Any] | None, str | None]:
    """Value and error of an answered row's outcome: the output line's `response`, or its JSON as the error where the
    request was refused."""
    fields = {
        "status_code": response.status_code,
        "request_id": response.request_id,
        "body": msgspec.Raw(response.body),
    }
    return (fields, None) if completion.status == "ok" else (None, _encode(fields).decode())


def answered_line(batch_id: str, custom_id: str, response: str) -> bytes:
    """A line of the output file. `response` is JSON of the outcome's value."""
    return _line(batch_id, custom_id, custom_id, msgspec.Raw(response), None)


def refused_line(batch_id: str, custom_id: str, error: str) -> bytes:
    """A line of the error file, from an outcome's error: a response, a `Problem`, or text."""
    try:
        fields = _decode_error(error)
    except ValueError:  # errors of attempts at replicas
        return lost_line(batch_id, custom_id, "server_error", error)
    if "status_code" in fields:
        return _line(batch_id, custom_id, custom_id, fields, None)
    shown = fields.pop("custom_id", None)
    return _line(batch_id, custom_id, shown, None, fields)


def lost_line(batch_id: str, custom_id: str, code: str, message: str) -> bytes:
    """A line of the error file, for a row without an answer."""
    return _line(batch_id, custom_id, custom_id, None, {"code": code, "message": message})


def _line(batch_id: str, row_id: str, shown: Any, response: Any, error: Any) -> bytes:
    # Derived from the row, so that a file written twice is the same.
    own = hashlib.sha256(f"{batch_id}/{row_id}".encode()).hexdigest()[:24]
    return _encode({"id": f"batch_req_{own}", "custom_id": shown, "response": response, "error": error}) + b"\n"


_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_error = msgspec.json.Decoder(dict[str, Any]).decode
