"""An HTTP request as a value for handles, and calls of ASGI applications with it.

When the caller leaves, the application sees its client leave. httpx.ASGITransport would cancel it, but vLLM's handler
stops only on `http.disconnect` (`with_cancellation`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream
from starlette.types import ASGIApp, Message, Receive

from serve_app.errors import EngineFailed

logger = logging.getLogger(__name__)

# Plain values of the ASGI scope, which a handle can send.
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "client")
# Time to abort a cancelled request.
ABORT_S = 5.0
MAX_UNSENT_MESSAGES = 64
BODY = "http.response.body"


class HttpRequest(msgspec.Struct, frozen=True):
    scope: dict[str, Any]
    body: bytes

    def asgi_scope(self) -> dict[str, Any]:
        """The scope with pairs as ASGI has them: MessagePack makes them lists."""
        pairs: dict[str, Any] = {"headers": [(name, value) for name, value in self.scope["headers"]]}
        if client := self.scope.get("client"):
            pairs["client"] = tuple(client)
        return {**self.scope, **pairs, "state": {}}


class TokenCounts(NamedTuple):
    prompt: int = 0
    completion: int = 0


class Answer(msgspec.Struct, frozen=True):
    """A whole HTTP answer and its replica. `tokens` are a peer engine's."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    replica_id: str = ""
    tokens: TokenCounts = TokenCounts()


async def call_app(app: ASGIApp, request: HttpRequest, replica_id: str = "") -> Answer:
    """An ASGI application's whole answer. Cancelling disconnects the client. Raises EngineFailed without an answer, or
    the application's error.
    """
    left = asyncio.Event()
    start: dict[str, Any] = {}
    parts: list[bytes] = []
    complete = False

    async def send(message: Message) -> None:
        nonlocal complete
        if message["type"] == "http.response.start":
            start.update(message)
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            complete = not message.get("more_body", False)

    call = asyncio.ensure_future(app(request.asgi_scope(), _client(request.body, left), send))
    try:
        await asyncio.shield(call)
    except asyncio.CancelledError:
        left.set()
        await asyncio.wait({call}, timeout=ABORT_S)
        raise
    except Exception:
        if not complete:
            raise
        logger.exception("after its answer to a request")  # Starlette raises what it answered
    finally:
        call.cancel()
    if not complete:
        raise EngineFailed("the engine's application ended without an answer")
    headers = ((bytes(name).lower(), bytes(value)) for name, value in start.get("headers", ()))
    kept = tuple(header for header in headers if header[0] != b"content-length")
    return Answer(start["status"], kept, b"".join(parts), replica_id)


async def forward(app: ASGIApp, request: HttpRequest) -> AsyncGenerator[list[Message], None]:
    """An ASGI application's messages, batched if several wait. Runs in the replica.

    Cancelling or closing disconnects the client. Raises EngineFailed for an incomplete answer, or the application's
    error.
    """
    outbox, inbox = anyio.create_memory_object_stream[Message](MAX_UNSENT_MESSAGES)
    left = asyncio.Event()

    async def send(message: Message) -> None:
        try:
            await outbox.send(message)
        except anyio.BrokenResourceError:
            raise OSError("the client left") from None  # ASGI's error

    async def answer() -> None:
        with outbox:
            await app(request.asgi_scope(), _client(request.body, left), send)

    call, whole = asyncio.create_task(answer()), False
    try:
        with inbox:
            async for message in inbox:
                messages = joined([message, *_waiting(inbox)])
                whole = is_last(messages[-1])
                yield messages
        await asyncio.wait({call})
        error = call.exception()
        if error and whole:  # Starlette raises what it answered
            logger.error("after its answer to a request", exc_info=error)
        elif error or not whole:
            raise error or EngineFailed("the engine's application ended without an answer")
    finally:
        left.set()
        try:
            await asyncio.wait({call}, timeout=ABORT_S)
        finally:
            call.cancel()
            if call.done() and not call.cancelled():
                call.exception()


def _client(body: bytes, left: asyncio.Event) -> Receive:
    """A client that sends one message, and stays until `left` is set."""
    unsent = [body]

    async def receive() -> Message:
        if unsent:
            return {"type": "http.request", "body": unsent.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


def _waiting(inbox: MemoryObjectReceiveStream[Message]) -> Iterator[Message]:
    with suppress(anyio.WouldBlock, anyio.EndOfStream):
        while True:
            yield inbox.receive_nowait()


def joined(messages: Iterable[Message]) -> list[Message]:
    result: list[Message] = []
    for message in messages:
        if result and message["type"] == result[-1]["type"] == BODY:
            both = result[-1].get("body", b"") + message.get("body", b"")
            result[-1] = {"type": BODY, "body": both, "more_body": message.get("more_body", False)}
        else:
            result.append(message)
    return result


def is_last(message: Message) -> bool:
    return message["type"] == BODY and not message.get("more_body", False)
