"""Answers a session's requests at its replica, where nobody before could choose it: behind HAProxy handles have Serve's
own router, so requests of several models come to any replica (`serving/models`).

    Models ─ handle ─> a replica ─ HTTP ─> the session's, if another
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.types import Message

from serve_app.errors import ReplicaLost
from serve_app.peers.calls import stream
from serve_app.peers.peer import Peer
from serve_app.serving.requests.asgi import HttpRequest
from serve_app.serving.requests.sharding import ListedPeers
from serve_app.serving.router import preferred

# A replica's method for peers.
FORWARD = "forward"
Messages = AsyncGenerator[list[Message]]


class SessionRelay:
    """`me` is this replica's id, `here` answers in it."""

    def __init__(self, peers: ListedPeers, me: str, here: Callable[[HttpRequest], Messages]) -> None:
        self._peers = peers
        self._me = me
        self._here = here

    async def forward(self, request: HttpRequest, session: str) -> Messages:
        """The answer of the session's replica; this one's if that is gone before it began."""
        if (home := await self._home(session)) is not None:
            began = False
            try:
                async with aclosing(stream(home, FORWARD, request, list[dict[str, Any]])) as relayed:
                    async for some in relayed:
                        began = True
                        yield [*some]
                return
            except ReplicaLost:
                if began:
                    raise
        async with aclosing(self._here(request)) as answer:
            async for messages in answer:
                yield messages

    async def _home(self, session: str) -> Peer | None:
        name = preferred(session, {self._me, *await self._peers.replicas()})
        return None if name == self._me else self._peers.peer(name)
