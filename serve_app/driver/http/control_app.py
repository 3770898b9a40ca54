"""What all control routes share: an application whose errors have OpenAI's shape, whoever raises them.

Knows which status each of our errors has. Does not know the routes.
"""

from __future__ import annotations

import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app.errors import BadSettings, JobConflict, JobNotFound, ServeAppError, ServerUnavailable

# First match counts.
STATUS_CODES: tuple[tuple[type[ServeAppError], int, str], ...] = (
    (JobNotFound, 404, "invalid_request_error"),
    (JobConflict, 409, "invalid_request_error"),
    (BadSettings, 400, "invalid_request_error"),
    (ServerUnavailable, 503, "server_error"),
    (ServeAppError, 500, "server_error"),
)
# Our errors begin with the field that is wrong, if it is one.
_FIELD = re.compile(r"([a-z_]+(?:\.[a-z_]+)*): ")


def control_app(title: str) -> FastAPI:
    """An application without routes, which answers ServeAppErrors, bad fields and unknown paths."""
    app = FastAPI(title=title)

    @app.exception_handler(ServeAppError)
    async def on_error(request: Request, error: ServeAppError) -> JSONResponse:
        code, kind = next((code, kind) for cls, code, kind in STATUS_CODES if isinstance(error, cls))
        field = _FIELD.match(str(error))
        return _answer(code, kind, str(error), field[1] if field else None)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await on_error(request, BadSettings.of_fields(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        answer = _answer(error.status_code, "invalid_request_error", str(error.detail), None)
        answer.headers.update(error.headers or {})
        return answer

    return app


def _answer(status: int, kind: str, message: str, param: str | None) -> JSONResponse:
    error = {"message": message, "type": kind, "param": param, "code": None}
    return JSONResponse({"error": error}, status_code=status)
