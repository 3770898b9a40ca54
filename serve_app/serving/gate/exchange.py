"""One HTTP request and its answer, between the server and an ASGI application that may have to be stopped.

Counts the body, notes what was sent and when, and ends the application when its client left, does not read, or time is
up. Does not know who the client is.

Stopping means sending `http.disconnect`, and cancelling only if that is ignored. vLLM 0.32 runs a handler in a task of
its own, which `http.disconnect` aborts (`with_cancellation`); cancelling the application, as Serve does, would let it
generate to the end.

Back-pressure (Ray 2.60): Serve's proxy, and a replica with a thread for user code (the default), queue without a bound
(`MessageQueue`). `send` returns at once, and a slow client costs memory in the proxy, up to its whole answer. Only
where user code runs in Serve's loop behind HAProxy (RAY_SERVE_THROUGHPUT_OPTIMIZED=1) does `send` wait for the socket,
and `write_timeout_s` apply. The engine never waits: vLLM merges unread tokens. A slow client does hold one of
`max_inflight_requests`.
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
# How long an application may take to stop.
ABORT_S = 5.0


class Exchange:
    """`extra` are our headers of the answer; `account` is what the engine counts into."""

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
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receiving: asyncio.Future[Any] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._body_bytes = 0
        self._begun_sends = self._done_sends = 0
        self._event_stream = self._finished = False

    # --- the whole of it ---

    async def run(self, app: ASGIApp) -> None:
        """Have the application answer, or stop it and answer in its place."""
        self._start_timers()
        call = asyncio.ensure_future(app(self.scope, self.receive, self.send))
        try:
            await asyncio.wait({call, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self.refusal is not None:
                await self._answer_instead(self.refusal)
            else:
                call.result()
        except asyncio.CancelledError:  # Serve cancels when the client left
            self.disconnected = not self._finished
            raise
        finally:
            for timer in self._timers.values():
                timer.cancel()
            await self._end(call)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer without the application."""
        self.refusal = refusal
        await self._answer_instead(refusal)

    def stop(self, refusal: Refusal) -> None:
        """From now on the application gets `http.disconnect`, and nothing it sends goes out."""
        if not self._stopped.done() and not self._finished:
            self.refusal = refusal
            self._hang_up()

    def _hang_up(self) -> None:
        self._stopped.set_result(None)
        if self._receiving is not None:
            self._receiving.cancel()

    async def _end(self, call: asyncio.Future[None]) -> None:
        """Leave nothing of the call running."""
        try:
            if not call.done():
                if not self._stopped.done():
                    self._hang_up()
                await asyncio.wait({call}, timeout=ABORT_S)
        finally:
            call.cancel()
            if self._stopped.done():
                await self.account.abort()
            call.add_done_callback(lambda call: call.cancelled() or call.exception())  # marks its error as retrieved

    async def _answer_instead(self, refusal: Refusal) -> None:
        if self._begun_sends != self._done_sends:  # the client does not read
            return
        if not self.status:
            self.status = refusal.status
            for message in refusal.messages(self.extra):
                await self._send(message)
        elif self._event_stream and not self._finished:  # OpenAI's clients raise such an event as an error
            event = b"data: %b\n\n" % refusal.body
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
        # Other answers stay unfinished, so that the server closes the connection and nobody takes it for whole.

    # --- what may take too long ---

    def _start_timers(self) -> None:
        if (timeout_s := self._settings.request_timeout_s) is not None:
            loop = asyncio.get_running_loop()
            self._timers["request"] = loop.call_later(timeout_s, self.stop, timed_out(timeout_s))
        if (timeout_s := self._settings.write_timeout_s) is not None:
            self._look_at_sends(timeout_s, None)

    def _look_at_sends(self, timeout_s: float, hung: int | None) -> None:
        """Stop if the send that hung at the last look still hangs; so sending needs no clock."""
        hangs = self._begun_sends if self._begun_sends != self._done_sends else None
        if hangs is not None and hangs == hung:
            return self.stop(client_too_slow(timeout_s))
        loop = asyncio.get_running_loop()
        self._timers["write"] = loop.call_later(timeout_s, self._look_at_sends, timeout_s, hangs)
        return None

    # --- ASGI, as the application sees it ---

    async def receive(self) -> Any:
        if self._stopped.done():
            return DISCONNECT
        self._receiving = asyncio.ensure_future(self._receive())
        try:
            message = await self._receiving
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._stopped.done() and task is not None and not task.cancelling():
                return DISCONNECT  # `_hang_up` cancelled the receive, not its caller
            raise
        if message["type"] == "http.request":
            return self._count_body(message)
        self.disconnected = not self._finished
        return message

    def _count_body(self, message: Any) -> Any:
        body, most = message.get("body", b""), self._settings.max_body_bytes
        if not self._body_bytes:  # only the first message: a small body is one
            self.model = read_model(body)
        self._body_bytes += len(body)
        if most is not None and self._body_bytes > most:
            self.stop(body_too_large(most))
            return DISCONNECT
        if self.bodies is not None:
            self._keep(0, body)
        return message

    async def send(self, message: Any) -> None:
        if self._stopped.done():
            return
        if message["type"] == "http.response.start":
            if self.account.refused is not None:  # the application words the error itself
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
