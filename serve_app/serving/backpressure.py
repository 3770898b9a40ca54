"""Back-pressure through Ray Serve, for the routes that carry files and results.

    client ═ socket ═ Edge ─ Serve's queues ─ Paced ─ application

Serve's queues between its HTTP server and an application have no bound (Ray 2.60: `MessageQueue`, `ASGIReceiveProxy`,
`ASGIDIReceiveProxy`): an upload that is faster than the store, or a download that is faster than its reader, would be
in memory as a whole. So each end tells the other what it took out, in ASGI messages of types that Serve does not know
and passes on, and neither has more than WINDOW_BYTES, and a message, on the way.

`Edge` is loaded by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, in Serve's proxies and in replicas behind HAProxy. Where
it is missing, `Paced` lets everything through.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.openai.errors import unavailable

BACKPRESSURE = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.serving.backpressure.middlewares"}
# What Edge says to applications: it is there.
EXTENSION = "serve_app.backpressure"
# In all, the bytes of the request that were used, and those of the answer that the socket took.
USED, SENT = f"{EXTENSION}.used", f"{EXTENSION}.sent"
WINDOW_BYTES = 4 << 20
# News are told as often.
STEP_BYTES = WINDOW_BYTES // 4
# Other applications' answers are small, and their requests have a bound of their own.
_carries_files = re.compile(r"/v1/(?:files|populations)(?:/|$)").search
_LOST = unavailable("the server ended before it answered")


def middlewares() -> list[Middleware]:
    """Serve calls it as an HTTP server starts."""
    return [Middleware(Edge)]


class Edge:
    """The end at the socket, whose `send` waits for the client and whose `receive` stops its reading."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _carries_files(scope["path"]):
            await self._app(scope, receive, send)
            return
        extensions = {**scope.get("extensions", {}), EXTENSION: {}}
        end = _EdgeExchange(receive, send)
        try:
            await self._app({**scope, "extensions": extensions}, end.receive, end.send)
            if not end.started:  # Serve takes `USED` for the beginning of an answer, after which it reports no failure
                await _LOST.response()(scope, receive, send)
        finally:
            end.close()


class _EdgeExchange:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._reading: asyncio.Future[Message] | None = None
        self._news = asyncio.Event()
        self._read = self._used = self._sent = self._told = 0
        self.started = False

    async def receive(self) -> Message:
        """What the client sent, while the application keeps up, or what it took."""
        while True:
            self._news.clear()
            if self._sent - self._told >= STEP_BYTES:
                self._told = self._sent
                return {"type": SENT, "bytes": self._sent}
            if self._reading is None and self._read - self._used < WINDOW_BYTES:
                self._reading = asyncio.ensure_future(self._receive())
            news = asyncio.ensure_future(self._news.wait())
            waits: set[asyncio.Future[Any]] = {news} if self._reading is None else {news, self._reading}
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
            if self._reading is not None and self._reading.done():
                message, self._reading = self._reading.result(), None
                self._read += len(message.get("body", b""))
                return message

    async def send(self, message: Message) -> None:
        if message["type"] == USED:
            self._used = message["bytes"]
            self._news.set()
            return
        self.started = True
        await self._send(message)
        self._sent += len(message.get("body", b""))
        if self._sent - self._told >= STEP_BYTES:
            self._news.set()

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()


class Paced:
    """An application that takes and gives no more than the client does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __getattr__(self, name: str) -> Any:
        # Serve reads routes and adds exception handlers.
        return getattr(self._app, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if EXTENSION not in scope.get("extensions", {}):
            await self._app(scope, receive, send)
            return
        end = _PacedExchange(receive, send)
        listening = asyncio.ensure_future(end.listen())
        try:
            await self._app(scope, end.receive, end.send)
        finally:
            listening.cancel()


class _PacedExchange:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._received: asyncio.Queue[Message | Exception] = asyncio.Queue()  # bounded by the other end's window
        self._news = asyncio.Event()
        self._last = self._used = self._told = self._given = self._sent = 0
        self._gone: Message | Exception | None = None

    async def listen(self) -> None:
        """Sort what comes in: the request is for the application, the news are for `send`."""
        while self._gone is None:
            try:
                message = await self._receive()
            except Exception as error:
                self._end(error)
                return
            if message["type"] == SENT:
                self._sent = message["bytes"]
                self._news.set()
            elif message["type"] == "http.disconnect":
                self._end(message)
            else:
                self._received.put_nowait(message)

    def _end(self, last: Message | Exception) -> None:
        self._gone = last
        self._received.put_nowait(last)
        self._news.set()

    async def receive(self) -> Message:
        """The next message. With it the one before counts as used."""
        self._used, self._last = self._used + self._last, 0
        if self._used - self._told >= STEP_BYTES:
            self._told = self._used
            await self._send({"type": USED, "bytes": self._used})
        message = self._gone if self._gone is not None and self._received.empty() else await self._received.get()
        if isinstance(message, Exception):
            raise message
        self._last = len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Waits until the client has taken enough of what was sent before."""
        while self._given - self._sent >= WINDOW_BYTES and self._gone is None:
            self._news.clear()
            await self._news.wait()
        if self._gone is None:
            self._given += len(message.get("body", b""))
            await self._send(message)
