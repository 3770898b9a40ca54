"""A session's requests reach its replica from whichever they come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from starlette.types import Message

from serve_app.errors import ReplicaLost
from serve_app.peers.peer import Peer
from serve_app.peers.server import Method, Server
from serve_app.serving.requests.asgi import HttpRequest
from serve_app.serving.requests.sessions import FORWARD, SessionRelay
from serve_app.serving.router import preferred
from tests.fakes import replica

NAMES = ("a", "b", "c")
REQUEST = HttpRequest({"type": "http", "headers": [(b"a", b"1")]}, b"body")
SESSIONS = [f"s{number}" for number in range(40)]


class FakeReplica:
    """Answers with its name, and then with `parts` more; or is lost after as many."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = self.open = 0
        self.hangs = False

    async def answer(self, request: HttpRequest) -> AsyncGenerator[list[Message]]:
        assert request.asgi_scope()["headers"] == [(b"a", b"1")]
        self.asked += 1
        self.open += 1
        try:
            yield [{"type": "http.response.start", "status": 200, "headers": [(b"x", b"\xff")]}]
            if self.hangs:
                await asyncio.sleep(3600)
            yield [{"type": "http.response.body", "body": self.name.encode()}]
        finally:
            self.open -= 1


class FakePeers:
    def __init__(self, peers: dict[str, Peer]) -> None:
        self.peers = peers

    async def replicas(self) -> list[str]:
        return [*self.peers]

    def peer(self, replica_id: str) -> Peer | None:
        return self.peers.get(replica_id)


class Cluster:
    def __init__(self) -> None:
        self.replicas = {name: FakeReplica(name) for name in NAMES}
        self.servers: dict[str, Server] = {}
        self.peers = FakePeers({})

    def relay(self, name: str) -> SessionRelay:
        peers: Any = self.peers
        return SessionRelay(peers, name, self.replicas[name].answer)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    async with AsyncExitStack() as stack:
        for name, one in made.replicas.items():
            server = made.servers[name] = Server({FORWARD: Method(HttpRequest, one.answer)}, "127.0.0.1", 0.1)
            await server.start()
            stack.push_async_callback(server.stop)
            made.peers.peers[name] = Peer(replica(name), await server.url(same_node=True), server.token)
        yield made


async def answered(relay: SessionRelay, session: str) -> str:
    (start, body) = [messages[0] async for messages in relay.forward(REQUEST, session)]
    assert [tuple(header) for header in start["headers"]] == [(b"x", b"\xff")]
    return str(body["body"].decode())


async def test_a_session_is_answered_by_one_replica_wherever_its_requests_come(cluster: Cluster) -> None:
    for session in SESSIONS:
        found = {await answered(cluster.relay(name), session) for name in NAMES}
        assert found == {preferred(session, NAMES)}
    assert all(one.asked for one in cluster.replicas.values())


async def test_a_replica_that_is_gone_before_its_answer_is_stood_in_for(cluster: Cluster) -> None:
    session = next(one for one in SESSIONS if preferred(one, NAMES) == "b")
    await cluster.servers["b"].stop()
    assert await answered(cluster.relay("a"), session) == "a"


async def test_a_replica_that_is_lost_in_its_answer_is_an_error_and_no_second_answer(cluster: Cluster) -> None:
    session = next(one for one in SESSIONS if preferred(one, NAMES) == "b")
    cluster.replicas["b"].hangs = True
    answer = cluster.relay("a").forward(REQUEST, session)
    await anext(answer)
    await cluster.servers["b"].stop()
    with pytest.raises(ReplicaLost):
        await anext(answer)
    assert not cluster.replicas["a"].asked


async def test_a_client_that_leaves_is_seen_at_the_sessions_replica(cluster: Cluster) -> None:
    session = next(one for one in SESSIONS if preferred(one, NAMES) == "b")
    cluster.replicas["b"].hangs = True
    async with aclosing(cluster.relay("a").forward(REQUEST, session)) as answer:
        await anext(answer)
        assert cluster.replicas["b"].open
    async with asyncio.timeout(5):
        while cluster.replicas["b"].open:
            await asyncio.sleep(0.01)


async def test_an_empty_list_of_peers_leaves_all_here(cluster: Cluster) -> None:
    cluster.peers.peers = {}
    assert {await answered(cluster.relay("a"), session) for session in SESSIONS} == {"a"}
