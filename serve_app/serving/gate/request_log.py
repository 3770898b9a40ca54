"""Logs one line of JSON per ended request, by the logger "serve_app.request". Names the key without showing it. Prompts
and answers only with `log_bodies`.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

import msgspec

from serve_app.serving.gate.exchange import Exchange

logger = logging.getLogger("serve_app.request")
# Status in nginx and Serve for a client that left.
CLIENT_LEFT = 499


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Fields of a line. `refused` is our reason; times count from the first byte in."""

    time: str
    id: str
    method: str
    path: str
    status: int
    duration_ms: float
    key: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: float | None = None
    client_left: bool = False
    refused: str = ""
    request_body: str = ""
    response_body: str = ""


class RequestLog:
    """Writes to standard output, which Ray collects, unless the logger has handlers."""

    def __init__(self) -> None:
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)

    def write(self, exchange: Exchange) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        text = msgspec.json.encode(line(exchange)).decode()
        if logger.hasHandlers():
            logger.info("%s", text)
        else:  # a record costs as much as the rest of the gate
            print(text, flush=True)


def line(exchange: Exchange) -> Line:
    request, response = exchange.bodies or (b"", b"")
    first = exchange.first_byte
    return Line(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        id=exchange.request_id,
        method=exchange.scope["method"],
        path=exchange.scope["path"],
        status=status(exchange),
        duration_ms=round((time.monotonic() - exchange.started) * 1000, 1),
        key=exchange.key.name if exchange.key else "",
        model=exchange.model,
        prompt_tokens=exchange.account.prompt_tokens,
        completion_tokens=exchange.account.completion_tokens,
        ttft_ms=None if first is None else round((first - exchange.started) * 1000, 1),
        client_left=exchange.disconnected,
        refused=exchange.refusal.reason if exchange.refusal else "",
        request_body=request.decode("utf-8", "replace"),
        response_body=response.decode("utf-8", "replace"),
    )


def status(exchange: Exchange) -> int:
    """The client's status: 499 if it left, 500 if the application raised."""
    return CLIENT_LEFT if exchange.disconnected else exchange.status or 500
