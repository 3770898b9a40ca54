"""One request to an ASGI application, byte by byte: no client makes it well-behaved on the way."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

# Of an answer; more is read and not kept.
KEPT_BYTES = 1 << 20
BOUND_S = 20.0


@dataclass(frozen=True)
class Request:
    """`path` is raw: percent-encoded. After `cut` parts of its body the client is gone; None: it stays."""

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)
    body: bytes = b""
    parts: int = 1
    cut: int | None = None

    def __str__(self) -> str:
        shown = self.body if len(self.body) < 600 else self.body[:600] + b"... (%d bytes)" % len(self.body)
        return f"{self.method} {self.path}?{self.query!r} {self.headers!r} {shown!r}"[:1500]


@dataclass
class Answer:
    status: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    error: BaseException | None = None
    seconds: float = 0.0

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(app: Any, request: Request, bound_s: float = BOUND_S) -> Answer:
    """What the application answered; `error` is what it raised, TimeoutError after `bound_s`."""
    size = max(1, -(-len(request.body) // request.parts))
    parts = [request.body[at : at + size] for at in range(0, len(request.body), size)] or [b""]
    sent, answer, gone = iter(enumerate(parts)), Answer(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        number, part = next(sent, (-1, b""))
        if number < 0 or number == request.cut:
            if number < 0 and request.cut is None:
                await gone.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": number + 1 < len(parts)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], tuple(message.get("headers", ()))
        elif len(answer.body) < KEPT_BYTES:
            answer.body += bytes(message.get("body", b""))

    started = time.monotonic()
    try:
        async with asyncio.timeout(bound_s):
            await app(_scope(request), receive, send)
    except Exception as error:  # a test of whatever may be raised
        answer.error = error
    finally:
        gone.set()
    answer.seconds = time.monotonic() - started
    return answer


def _scope(request: Request) -> dict[str, Any]:
    raw = request.path.encode("utf-8", "surrogatepass")
    headers = request.headers
    if not any(name == b"host" for name, _ in headers):
        headers = ((b"host", b"127.0.0.1:8000"), *headers)
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": request.method, "scheme": "http", "path": unquote(request.path), "raw_path": raw,
        "query_string": request.query, "root_path": "", "headers": [*headers], "state": {},
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8000), "extensions": {},
    }  # fmt: skip
