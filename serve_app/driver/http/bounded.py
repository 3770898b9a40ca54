"""What lasts or is large, and has a bound of its own: event streams, downloads, uploads and JSON bodies.

Serve gives a deployment a number of places (`max_ongoing_requests`), and a request holds one until its client has sent
or read all of it. Without other bounds these would take all of them, and nobody could submit or cancel; a thread and
disk of this machine go with each upload, and memory with each JSON body.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.errors import StoreError
from serve_app.openai.errors import ErrorAnswer, retry_after

# Together well below `max_ongoing_requests`.
MOST_EVENT_STREAMS, MOST_DOWNLOADS, MOST_UPLOADS = 96, 64, 32
# Of one JSON body, which is held in memory several times over, and of all together.
MOST_JSON_BYTES, MOST_JSON_BYTES_HELD = 64 << 20, 256 << 20
MOST_FIELDS = 32
MOST_BLOCKS_MADE = 8
RETRY_AFTER_S = 5.0


async def in_turns(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The blocks, each made in a thread. A few at a time over all: making one takes several times its size."""
    limiter = _making.setdefault(asyncio.get_running_loop(), CapacityLimiter(MOST_BLOCKS_MADE))
    try:
        while (block := await to_thread.run_sync(next, blocks, None, limiter=limiter)) is not None:
            yield block
    finally:
        if isinstance(blocks, Generator):  # a client that left: what it read from is closed
            blocks.close()


_making: WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = WeakKeyDictionary()


class Bounded(Response):
    """`answer`, or 429 where all `places` are taken."""

    def __init__(self, answer: Response, places: asyncio.Semaphore) -> None:
        super().__init__()
        self._answer = answer
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._places.locked():
            return await _TAKEN.response()(scope, receive, send)
        async with self._places:
            await self._answer(scope, receive, send)


class Uploads:
    """Forms with a file. A file is on this machine's disk until the store has it."""

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    @asynccontextmanager
    async def form(self, request: Request) -> AsyncIterator[FormData]:
        """The request's form. Raises HTTPException (429) where all places are taken, StoreError for a full disk."""
        if self._places.locked():
            raise _too_many("uploads open")
        async with self._places:
            try:
                form = await request.form(max_files=1, max_fields=MOST_FIELDS)
            except OSError as error:
                raise StoreError(f"the upload cannot be kept while it comes in: {error.strerror}") from error
            try:
                yield form
            finally:
                await form.close()


class JsonBodies:
    """JSON bodies of jobs, whose bytes count together."""

    def __init__(self, most: int = MOST_JSON_BYTES, most_held: int = MOST_JSON_BYTES_HELD) -> None:
        self._most, self._left = most, most_held

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body. Raises HTTPException: 413 for one that is too large, 429 where all of them are."""
        body = bytearray()
        held = 0
        try:
            async for part in request.stream():
                held, self._left = held + len(part), self._left - len(part)
                if held > self._most:
                    message = f"a JSON body has at most {self._most} bytes: send more rows as a file, in a form"
                    raise HTTPException(413, message)
                if self._left < 0:
                    raise _too_many("large requests in work")
                body += part
            yield bytes(body)
        finally:
            self._left += held


def _too_many(what: str) -> HTTPException:
    name, value = retry_after(RETRY_AFTER_S)
    message = f"This server has as many {what} as it takes. Try again."
    return HTTPException(429, message, {name.decode(): value.decode()})


_TAKEN = ErrorAnswer(
    status=429,
    message="This server has as many event streams or downloads open as it takes. Ask for the status, or try again.",
    type="server_error",
    code="overloaded",
    headers=(retry_after(RETRY_AFTER_S),),
)
