"""OpenAI's errors: body, type, code and status.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

All our error answers are made here. vLLM's own pass unchanged, except for an unknown model
(`serving/unknown_model.py`). The types are OpenAI's: every client error is an `invalid_request_error`, including a
missing key and an unknown path; `code` tells them apart (platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
from starlette.responses import Response

from serve_app.errors import BadSettings, JobConflict, JobNotFound, ServeAppError, ServerUnavailable

Headers = tuple[tuple[bytes, bytes], ...]

# The first match counts.
STATUSES: tuple[tuple[type[ServeAppError], int], ...] = (
    (JobNotFound, 404),
    (JobConflict, 409),
    (BadSettings, 400),
    (ServerUnavailable, 503),
    (ServeAppError, 500),
)
# Default wait before a retry.
RETRY_AFTER_S = 5.0


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP error. An empty `type` becomes the status's own; `headers` are additional."""

    status: int
    message: str
    type: str = ""
    code: str | None = None
    param: str | None = None
    headers: Headers = ()

    @property
    def body(self) -> bytes:
        kind = self.type or ("server_error" if self.status >= 500 else "invalid_request_error")
        # JSON may contain lone surrogates, which UTF-8 cannot encode.
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
    """The answer to a request that raised our error; `param` is a BadSettings' field."""
    status = next(status for cls, status in STATUSES if isinstance(error, cls))
    field = error.field if isinstance(error, BadSettings) else None
    headers = (retry_after(RETRY_AFTER_S),) if status == 503 else ()
    return ErrorAnswer(status=status, message=str(error), param=field, headers=headers)


def model_not_found(model: str) -> ErrorAnswer:
    """OpenAI's wording, from a replica, the models route and batch lines alike."""
    message = f"The model `{model}` does not exist"
    return ErrorAnswer(status=404, message=message, code="model_not_found", param="model")


def unavailable(message: str, retry_after_s: float = RETRY_AFTER_S) -> ErrorAnswer:
    """No replica can answer now."""
    return ErrorAnswer(status=503, message=f"{message}; try again", headers=(retry_after(retry_after_s),))


def retry_after(wait_s: float) -> tuple[bytes, bytes]:
    """Whole seconds, rounded up: a client must not return too early."""
    return b"retry-after", b"%d" % max(1, math.ceil(wait_s))
