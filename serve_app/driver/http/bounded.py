"""Answers that last: event streams and downloads, of which only so many are open at once.

Serve gives a deployment a number of places (`max_ongoing_requests`), and an answer holds one until its client has all
of it. Without a bound of their own these would take all of them, and nobody could submit or cancel.
"""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.openai.errors import ErrorAnswer, retry_after

# Together well below `max_ongoing_requests`.
MOST_EVENT_STREAMS, MOST_DOWNLOADS = 96, 64
RETRY_AFTER_S = 5.0


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


_TAKEN = ErrorAnswer(
    status=429,
    message="This server has as many event streams or downloads open as it takes. Ask for the status, or try again.",
    type="server_error",
    code="overloaded",
    headers=(retry_after(RETRY_AFTER_S),),
)
