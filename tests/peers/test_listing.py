"""The list of replicas, by a handle that is made up: real ones are in tests/system/test_population.py."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from serve_app.peers import listing as module
from serve_app.peers.listing import DESCRIBE, Listing, outside_request
from serve_app.peers.peer import Peer
from serve_app.peers.server import Method, Server
from serve_app.schema import ReplicaInfo
from serve_app.settings import REPLICA_DEPLOYMENT, REPLICAS_APP
from tests.fakes import replica


class Replicas:
    """Serve's handle of replicas a and b; `hangs` is the one that does not answer."""

    def __init__(self) -> None:
        self.hangs = ""
        self.peers: dict[str, Peer] = {}
        self.guesses = 0

    async def run(self, stack: AsyncExitStack) -> None:
        for name in "ab":
            server = Server({DESCRIBE: Method(type(None), self._describe(name))}, "127.0.0.1", 0.1)
            await server.start()
            stack.push_async_callback(server.stop)
            self.peers[name] = Peer(replica(name), await server.url(same_node=True), server.token)

    def _describe(self, name: str) -> Any:
        async def describe(_: None) -> AsyncGenerator[ReplicaInfo]:
            if name == self.hangs:
                await asyncio.sleep(3600)
            yield replica(name)

        return describe

    # --- what Serve's handle has ---

    def broadcast(self, method: str, node_id: str) -> Any:
        assert (method, node_id) == ("peer", "node")
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if self.hangs:
            raise TimeoutError
        return [*self.peers.values(), RuntimeError("gone")]

    @property
    def peer(self) -> Any:
        return SimpleNamespace(remote=self._one)

    def _one(self, node_id: str) -> Any:
        self.guesses += 1
        name = "ab"[self.guesses % 2]

        async def answer() -> Peer:
            if name == self.hangs:
                await asyncio.sleep(3600)
            return self.peers[name]

        return Response(answer())


class Response:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        return self._answer.__await__()

    def cancel(self) -> None:
        pass


@pytest.fixture
async def handle(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replicas]:
    monkeypatch.setattr(module, "HANGS_S", 0.1)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    async with AsyncExitStack() as stack:
        replicas = Replicas()
        await replicas.run(stack)
        yield replicas


def serve_says(monkeypatch: pytest.MonkeyPatch, running: int) -> None:
    """What the controller tells of the deployment Replica; the ingress beside it runs always."""
    states = {REPLICA_DEPLOYMENT: {"RUNNING": running} if running else {}, "Router": {"RUNNING": 1}}
    deployments = {name: SimpleNamespace(replica_states=state) for name, state in states.items()}
    app = SimpleNamespace(deployments=deployments)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={REPLICAS_APP: app}))


def listing(handle: Any) -> Listing:
    return Listing(handle, REPLICAS_APP)


async def test_a_replica_that_hangs_hides_no_other(handle: Replicas) -> None:
    listed = listing(handle)
    assert [*await listed.refresh()] == ["a", "b"]
    handle.hangs = "b"
    assert [*await listed.refresh()] == ["a"]


async def test_where_none_is_known_yet_some_are_asked_at_random(
    handle: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle.hangs = "b"
    serve_says(monkeypatch, running=2)
    assert [*await listing(handle).refresh()] == ["a"]


async def test_where_none_runs_nobody_is_asked_as_that_would_start_one(
    handle: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle.hangs = "b"
    serve_says(monkeypatch, running=0)
    assert await listing(handle).refresh() == {}
    assert handle.guesses == 0


async def test_the_controller_is_not_asked_where_replicas_are_known(
    handle: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status() -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(serve, "status", status)
    listed = listing(handle)
    await listed.refresh()
    handle.hangs = "b"
    assert [*await listed.refresh()] == ["a"]


async def test_a_replica_that_leaves_the_list_can_still_be_called_until_the_next_one(handle: Replicas) -> None:
    listed = listing(handle)
    await listed.refresh()
    del handle.peers["b"]
    assert [*await listed.refresh()] == ["a"]
    assert [*listed.known] == ["a", "b"]
    assert [*await listed.refresh()] == [*listed.known] == ["a"]


request_of_serve: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_of_serve")


async def test_work_outside_of_a_request_carries_no_request_of_serve() -> None:
    async def seen() -> str | None:
        return request_of_serve.get(None)

    request_of_serve.set("the client's")
    assert await outside_request(seen()) is None
