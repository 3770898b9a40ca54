"""What all control routes share: an application whose errors have OpenAI's shape, whoever raises them.

Knows FastAPI's handlers of errors. Does not know the routes.
"""

from __future__ import annotations

import logging
import re

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve_app.errors import BadSettings, ServeAppError, StoreError
from serve_app.openai.errors import ErrorAnswer, of_exception

logger = logging.getLogger(__name__)
# A path or a store's URL in a text: where the server keeps its files is not the client's to know.
PLACE = re.compile(r"(?<![\w/.:-])(?:[a-z][a-z0-9+.-]*:/|)/[\w.@:%+/-]*/(?=[\w.-])")


def without_places(message: str) -> str:
    """The message with files' names in place of their paths and URLs."""
    return PLACE.sub("", message)


def control_app(title: str) -> FastAPI:
    """An application without routes, which answers ServeAppErrors, bad fields and unknown paths."""
    # A redirect names the scheme that this server sees, which is not the client's behind a proxy with TLS.
    app = FastAPI(title=title, redirect_slashes=False)

    @app.exception_handler(ServeAppError)
    async def on_error(request: Request, error: ServeAppError) -> Response:
        answer = of_exception(error)
        if isinstance(error, StoreError):
            if answer.status >= 500:
                logger.error("%s %s: %s", request.method, request.url.path, error)
            answer = msgspec.structs.replace(answer, message=without_places(answer.message))
        return answer.response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return of_exception(BadSettings.of_fields(error.errors())).response()

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        answer = ErrorAnswer(status=error.status_code, message=str(error.detail)).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ClientDisconnect)
    async def on_gone(request: Request, error: ClientDisconnect) -> Response:
        # Nobody reads this; without an answer the server would log a fault of its own.
        return ErrorAnswer(status=400, message="the request ended before its body did").response()

    return app
