"""A peer in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from serve_app.peers.peer import Peer
from serve_app.peers.server import Method, Server
from tests.fakes import replica


class Methods:
    """What a peer does: `count` yields numbers; `hang` yields 0 and then nothing until it is cancelled."""

    def __init__(self) -> None:
        self.open = 0
        self.ended: list[str] = []
        self.error: BaseException | None = None

    async def count(self, to: int) -> AsyncGenerator[int]:
        for number in range(to):
            yield number
        if self.error is not None:
            raise self.error

    async def hang(self, name: str) -> AsyncGenerator[int]:
        self.open += 1
        try:
            yield 0
            await asyncio.sleep(3600)
        finally:
            self.open -= 1
            self.ended.append(name)

    async def big(self, size: int) -> AsyncGenerator[bytes]:
        while True:
            self.open += 1
            yield bytes(size)

    async def echo(self, said: Any) -> AsyncGenerator[Any]:
        yield said


@asynccontextmanager
async def serving(
    methods: Methods, *, same_node: bool = True, grace_s: float = 0.1, node: str = "127.0.0.2"
) -> AsyncIterator[tuple[Server, Peer]]:
    table = {
        "count": Method(int, methods.count),
        "hang": Method(str, methods.hang),
        "big": Method(int, methods.big),
        "echo": Method(bytes, methods.echo),
    }
    server = Server(table, node, grace_s)
    await server.start()
    try:
        yield server, Peer(replica("a"), await server.url(same_node=same_node), server.token)
    finally:
        await server.stop()
