"""OpenAI's errors: the body, and which type, code and status an error has.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

Every answer of ours that is an error is made here, so that a client meets one shape on all routes. vLLM's own answers
pass as they are, but for that to an unknown model (`serving/unknown_model.py`). The types are what OpenAI's API answers
with: whatever the client can mend is an `invalid_request_error`, a missing key and an unknown path too; `code` tells
them apart (platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
from starlette.responses import Response

from serve_app.errors import BadSettings, JobConflict, JobNotFound, ServeAppError, ServerUnavailable

Headers = tuple[tuple[bytes, bytes], ...]

# First match counts.
STATUSES: tuple[tuple[type[ServeAppError], int], ...] = (
    (JobNotFound, 404),
    (JobConflict, 409),
    (BadSettings, 400),
    (ServerUnavailable, 503),
    (ServeAppError, 500),
)
# How long a client waits that was told to come back, where nothing is known of how long it will take.
RETRY_AFTER_S = 5.0


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer that is an error. `type` is the status's own if empty; `headers` are those beside the body's."""

    status: int
    message: str
    type: str = ""
    code: str | None = None
    param: str | None = None
    headers: Headers = ()

    @property
    def body(self) -> bytes:
        kind = self.type or ("server_error" if self.status >= 500 else "invalid_request_error")
        # JSON can name what no answer can hold: half a surrogate pair.
        message, param = (text and text.encode("utf-8", "replace").decode() for text in (self.message, self.param))
        error = {"message": message, "type": kind, "param": param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def messages(self, extra: Iterable[tuple[bytes, bytes]] = ()) -> tuple[dict[str, object], dict[str, object]]:
        """The ASGI messages of the whole answer, with `extra` headers."""
        body = self.body
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *self.headers,
            *extra,
        ]
        start = {"type": "http.response.start", "status": self.status, "headers": headers}
        return start, {"type": "http.response.body", "body": body, "more_body": False}

    def response(self) -> Response:
        """The whole answer, for Starlette and FastAPI."""
        headers = {name.decode(): value.decode() for name, value in self.headers}
        return Response(self.body, self.status, headers, "application/json")


def of_exception(error: ServeAppError) -> ErrorAnswer:
    """The answer to a request that raised one of our errors; `param` is the field that a BadSettings names."""
    status = next(status for cls, status in STATUSES if isinstance(error, cls))
    field = error.field if isinstance(error, BadSettings) else None
    headers = (retry_after(RETRY_AFTER_S),) if status == 503 else ()
    return ErrorAnswer(status=status, message=str(error), param=field, headers=headers)


def model_not_found(model: str) -> ErrorAnswer:
    """In OpenAI's words; the same from a replica, from several models at one address and in a batch's line."""
    message = f"The model `{model}` does not exist"
    return ErrorAnswer(status=404, message=message, code="model_not_found", param="model")


def unavailable(message: str, retry_after_s: float = RETRY_AFTER_S) -> ErrorAnswer:
    """No replica can answer it now."""
    return ErrorAnswer(status=503, message=f"{message}; try again", headers=(retry_after(retry_after_s),))


def retry_after(wait_s: float) -> tuple[bytes, bytes]:
    """The header has whole seconds; rounding down would have the client come back too early."""
    return b"retry-after", b"%d" % max(1, math.ceil(wait_s))
