"""One HTTP request and its answer, between the server and an ASGI application.

Counts the body, records what was sent and when, and stops the application when its client leaves, does not read, or
exceeds its time.

It stops the application by `http.disconnect`, and cancels only if that is ignored. vLLM 0.32 runs a handler in its own
task, which `http.disconnect` aborts (`with_cancellation`) but Serve's cancelling does not.

Back-pressure (Ray 2.60): behind HAProxy, in Serve's loop, `send` waits for the socket, and `write_timeout_s` applies;
for files and results everywhere (`serving/backpressure.py`). Serve's proxy, and a replica with a thread for user code,
queue without a bound (`MessageQueue`): `send` returns at once, and a slow client may cost the proxy a whole answer of
memory. The engine never waits, since vLLM merges unread tokens. A slow client holds one of `max_inflight_requests`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from serve_app.engine.protocol import ASGIApp
from serve_app.serving.gate.accounting import Account
from serve_app.serving.gate.keys import Key
from serve_app.serving.gate.refusal import Refusal, body_too_large, client_too_slow, timed_out
from serve_app.serving.gate.small_body import SMALL_BODY_BYTES, read_model
from serve_app.settings import AccessSettings

DISCONNECT = {"type": "http.disconnect"}
# Time for an application to stop.
ABORT_S = 5.0


class Exchange:
    """`extra` are added answer headers; the engine counts into `account`."""

    def __init__(
        self,
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
        settings: AccessSettings,
    ) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.extra: list[tuple[bytes, bytes]] = []
        self.account = Account(settings.max_prompt_tokens)
        self.request_id = ""
        self.key: Key | None = None
        self.model = ""
        self.status = 0
        self.refusal: Refusal | None = None
        self.disconnected = False
        self.started = time.monotonic()
        self.first_byte: float | None = None
        self.bodies = (bytearray(), bytearray()) if settings.log_bodies else None
        self._receive, self._send, self._settings = receive, send, settings
        # Done when the application ended or was stopped.
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped = False
        self._receiving: asyncio.Future[Any] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._body_bytes = 0
        self._begun_sends = self._done_sends = 0
        self._event_stream = self._finished = False

    async def run(self, app: ASGIApp) -> None:
        self._start_timers()
        call = asyncio.ensure_future(app(self.scope, self.receive, self.send))
        call.add_done_callback(self._wake)
        try:
            await self._over
            if self.refusal is not None:
                await self._answer_instead(self.refusal)
            else:
                call.result()
        except asyncio.CancelledError:  # the client left
            self.disconnected = not self._finished
            raise
        finally:
            for timer in self._timers.values():
                timer.cancel()
            await self._end(call)

    async def refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        await self._answer_instead(refusal)

    def stop(self, refusal: Refusal) -> None:
        """Send the application `http.disconnect` and discard its further output."""
        if not self._stopped and not self._finished:
            self.refusal = refusal
            self._hang_up()

    def _hang_up(self) -> None:
        self._stopped = True
        self._wake()
        if self._receiving is not None:
            self._receiving.cancel()

    def _wake(self, _: object = None) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def _end(self, call: asyncio.Future[None]) -> None:
        try:
            if not call.done():
                if not self._stopped:
                    self._hang_up()
                await asyncio.wait({call}, timeout=ABORT_S)
        finally:
            call.cancel()
            if self._stopped:
                await self.account.abort()
            call.add_done_callback(_look_at)

    async def _answer_instead(self, refusal: Refusal) -> None:
        if self._begun_sends != self._done_sends:
            return
        if not self.status:
            self.status = refusal.status
            for message in refusal.messages(self.extra):
                await self._send(message)
        elif self._event_stream and not self._finished:  # OpenAI's clients raise this event
            event = b"data: %b\n\n" % refusal.body
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
        # Unfinished answers make the server close the connection, so nobody takes them for whole.

    def _start_timers(self) -> None:
        if (timeout_s := self._settings.request_timeout_s) is not None:
            loop = asyncio.get_running_loop()
            self._timers["request"] = loop.call_later(timeout_s, self.stop, timed_out(timeout_s))
        if (timeout_s := self._settings.write_timeout_s) is not None:
            self._look_at_sends(timeout_s, None)

    def _look_at_sends(self, timeout_s: float, hung: int | None) -> None:
        """Stop if the send seen last time still hangs, so sending needs no clock."""
        hangs = self._begun_sends if self._begun_sends != self._done_sends else None
        if hangs is not None and hangs == hung:
            return self.stop(client_too_slow(timeout_s))
        loop = asyncio.get_running_loop()
        self._timers["write"] = loop.call_later(timeout_s, self._look_at_sends, timeout_s, hangs)
        return None

    async def receive(self) -> Any:
        if self._stopped:
            return DISCONNECT
        self._receiving = asyncio.ensure_future(self._receive())
        try:
            message = await self._receiving
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._stopped and task is not None and not task.cancelling():
                return DISCONNECT  # `_hang_up` cancelled the receive only
            raise
        if message["type"] == "http.request":
            return self._count_body(message)
        self.disconnected = not self._finished
        return message

    def _count_body(self, message: Any) -> Any:
        body, most = message.get("body", b""), self._settings.max_body_bytes
        if not self._body_bytes:  # a small body is one message
            self.model = read_model(body)
        self._body_bytes += len(body)
        if most is not None and self._body_bytes > most:
            self.stop(body_too_large(most))
            return DISCONNECT
        if self.account.place is not None and (refusal := self.account.place.take(len(body))) is not None:
            self.stop(refusal)
            return DISCONNECT
        if self.bodies is not None:
            self._keep(0, body)
        return message

    async def send(self, message: Any) -> None:
        if self._stopped:
            return
        if message["type"] == "http.response.start":
            if self.account.refused is not None:  # the application words the error
                return self.stop(self.account.refused)
            message = self._begin(message)
        elif self.first_byte is None and message.get("body"):
            self.first_byte = time.monotonic()
        self._begun_sends += 1
        await self._send(message)
        self._done_sends += 1
        if message["type"] == "http.response.body":
            self._finished = not message.get("more_body", False)
            if self.bodies is not None:
                self._keep(1, message.get("body", b""))

    def _begin(self, message: Any) -> Any:
        self.status = message["status"]
        headers = [*message.get("headers", ()), *self.extra]
        self._event_stream = any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
        )
        return {**message, "headers": headers}

    def _keep(self, which: int, body: bytes) -> None:
        if self.bodies is not None:
            self.bodies[which].extend(body[: max(0, SMALL_BODY_BYTES - len(self.bodies[which]))])


def _look_at(call: asyncio.Future[None]) -> None:
    """Or asyncio logs that nobody did."""
    if not call.cancelled():
        call.exception()
