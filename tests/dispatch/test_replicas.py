"""The pool's side of a replica: chunks go to the one that is named, and its errors say what died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.dispatch.replicas import ROWS, HandlePool
from serve_app.errors import BadSettings, EngineFailed, ReplicaLost
from serve_app.peers.calls import PeerFailed
from serve_app.peers.peer import Peer
from serve_app.peers.server import Method, Server
from serve_app.schema import Chunk, Completion, Finished
from tests.fakes import replica

FIRST = Completion(text="first", label_logprobs=(-0.5, -1.25), prompt_tokens=7)


class Named:
    """A replica that yields FIRST, and then waits or raises."""

    def __init__(self) -> None:
        self.raises: BaseException | None = None
        self.chunks: list[Chunk] = []
        self.open = 0

    async def rows(self, chunk: Chunk) -> AsyncGenerator[tuple[dict[int, Completion], int]]:
        self.chunks.append(chunk)
        self.open += 1
        try:
            yield {3: FIRST}, 5
            if self.raises is not None:
                raise self.raises
            await asyncio.sleep(3600)
        finally:
            self.open -= 1


@pytest.fixture
async def named() -> AsyncIterator[tuple[Named, HandlePool]]:
    replica_a = Named()
    server = Server({ROWS: Method(Chunk, replica_a.rows)}, "127.0.0.1", 0.1)
    await server.start()
    peer = Peer(replica("a"), await server.url(same_node=True), server.token)
    listing: Any = SimpleNamespace(known={"a": peer}, refresh=None)
    yield replica_a, HandlePool(listing)
    await server.stop()


async def closed(named: Named) -> None:
    async with asyncio.timeout(5):
        while named.open:
            await asyncio.sleep(0.01)


async def test_a_chunk_comes_whole_to_the_replica_that_is_named_and_its_rows_come_back(named: Any) -> None:
    replica_a, pool = named
    chunk = Chunk(7, (b"\0\0\0\1", b"\0\0\0\2"), (5, 9), priority=10)
    async with aclosing(pool.run("a", chunk)) as rows:
        assert await anext(rows) == Finished(replica("a"), {3: FIRST}, 5)
    assert replica_a.chunks == [chunk]


async def test_a_cancelled_chunk_is_cancelled_on_the_replica(named: Any) -> None:
    replica_a, pool = named
    came: list[Finished] = []

    async def call() -> None:
        async for finished in pool.run("a", Chunk(1, ())):
            came.append(finished)

    calling = asyncio.create_task(call())
    async with asyncio.timeout(5):
        while not came:
            await asyncio.sleep(0.01)
    assert replica_a.open
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await closed(replica_a)


async def test_a_chunk_that_nobody_reads_to_its_end_is_cancelled_on_the_replica(named: Any) -> None:
    replica_a, pool = named
    async with aclosing(pool.run("a", Chunk(1, ()))) as rows:
        await anext(rows)
        assert replica_a.open
    await closed(replica_a)


@pytest.mark.parametrize(
    ("raised", "seen", "message"),
    [
        (EngineFailed("it made no step"), EngineFailed, "^it made no step$"),
        (asyncio.CancelledError(), ReplicaLost, "a is gone"),
        # Its own bug: the replica lives.
        (BadSettings("no such field"), PeerFailed, "BadSettings: no such field"),
        (ReplicaLost("a peer of its own"), PeerFailed, "ReplicaLost"),
        (TypeError("cannot add"), PeerFailed, "TypeError: cannot add"),
    ],
)
async def test_a_call_says_whether_the_engine_died_or_the_replica_is_gone_or_only_the_chunk_failed(
    named: Any, raised: BaseException, seen: type[Exception], message: str
) -> None:
    replica_a, pool = named
    replica_a.raises = raised
    rows = pool.run("a", Chunk(1, ()))
    assert (await anext(rows)).completions == {3: FIRST}, "what came before stays"
    with pytest.raises(seen, match=message):
        await anext(rows)


async def test_a_replica_that_left_the_list_is_lost(named: Any) -> None:
    with pytest.raises(ReplicaLost, match="b does not answer"):
        await anext(named[1].run("b", Chunk(1, ())))
