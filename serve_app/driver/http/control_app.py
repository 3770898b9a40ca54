"""What all control routes share: an application whose errors have OpenAI's shape, whoever raises them.

Knows FastAPI's handlers of errors. Does not know the routes.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serve_app.errors import BadSettings, ServeAppError
from serve_app.openai.errors import ErrorAnswer, of_exception


def control_app(title: str) -> FastAPI:
    """An application without routes, which answers ServeAppErrors, bad fields and unknown paths."""
    app = FastAPI(title=title)

    @app.exception_handler(ServeAppError)
    async def on_error(request: Request, error: ServeAppError) -> Response:
        return of_exception(error).response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return of_exception(BadSettings.of_fields(error.errors())).response()

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        answer = ErrorAnswer(status=error.status_code, message=str(error.detail)).response()
        answer.headers.update(error.headers or {})
        return answer

    return app
