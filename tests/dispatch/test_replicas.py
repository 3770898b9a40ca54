"""The handle's side of the pool, over a handle that is made up: real ones are in tests/system/test_population.py."""

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayTaskError
from ray.serve.exceptions import ReplicaUnavailableError

from serve_app.dispatch import replicas as module
from serve_app.dispatch.replicas import HandlePool
from serve_app.errors import BadSettings, EngineFailed, ReplicaLost
from serve_app.schema import Chunk, Completion, Finished
from serve_app.settings import REPLICA_DEPLOYMENT, REPLICAS_APP
from tests.fakes import replica

FIRST = Finished(replica("a"), {1: Completion(text="first")})


class Response:
    def __init__(self, answer: Any, hold_s: float = 0.0) -> None:
        self.answer, self.hold_s, self.cancelled = answer, hold_s, False

    def __await__(self) -> Any:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        await asyncio.sleep(self.hold_s)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    async def results_async(self, **_: Any) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def cancel(self) -> None:
        self.cancelled = True


class Rows:
    """A streaming call: rows that finished, then `ends`, after a while."""

    def __init__(self, finished: list[Finished], ends: BaseException | None, hold_s: float) -> None:
        self.finished, self.ends, self.hold_s, self.cancelled = [*finished], ends, hold_s, False

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Finished:
        if self.finished:
            return self.finished.pop(0)
        await asyncio.sleep(self.hold_s)
        raise self.ends or StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


class Method:
    def __init__(self, answer: Any) -> None:
        self.remote = answer


class Handle:
    """Replicas a and b; `hangs` is the one that does not answer."""

    hangs = ""
    sent: Rows
    raises: BaseException | None = None

    def options(self, *, stream: bool) -> "Handle":
        assert stream
        return self

    def broadcast(self, method: str) -> Response:
        return Response(TimeoutError() if self.hangs else [replica("a"), replica("b"), RuntimeError("gone")])

    @property
    def describe(self) -> Method:
        return Method(lambda replica_id: Response(replica(replica_id or "a"), 60 if replica_id == self.hangs else 0))

    @property
    def run_chunk(self) -> Method:
        def remote(chunk: Chunk, replica_id: str) -> Rows:
            self.sent = Rows([FIRST], self.raises, 0 if self.raises else 60)
            return self.sent

        return Method(remote)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "DESCRIBE_TIMEOUT_S", 0.05)
    return Handle()


async def test_a_replica_that_hangs_hides_no_other(handle: Any) -> None:
    pool = HandlePool(handle)
    assert [one.replica_id for one in await pool.replicas()] == ["a", "b"]
    handle.hangs = "b"
    assert [one.replica_id for one in await pool.replicas()] == ["a"]


def serve_says(monkeypatch: pytest.MonkeyPatch, running: int) -> None:
    """What the controller tells of the deployment Replica; the ingress beside it runs always."""
    states = {REPLICA_DEPLOYMENT: {"RUNNING": running} if running else {}, "Router": {"RUNNING": 1}}
    deployments = {name: SimpleNamespace(replica_states=state) for name, state in states.items()}
    app = SimpleNamespace(deployments=deployments)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={REPLICAS_APP: app}))


async def test_where_none_is_known_yet_some_are_asked_at_random(handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handle.hangs = "b"
    serve_says(monkeypatch, running=2)
    assert [one.replica_id for one in await HandlePool(handle).replicas()] == ["a"]


async def test_where_none_runs_nobody_is_asked_as_that_would_start_one(
    handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle.hangs = "b"
    serve_says(monkeypatch, running=0)
    assert await HandlePool(handle).replicas() == []


async def test_a_cancelled_chunk_is_cancelled_on_the_replica(handle: Any) -> None:
    async def call() -> None:
        async for finished in HandlePool(handle).run("a", Chunk(1, ())):
            came.append(finished)

    came: list[Finished] = []
    calling = asyncio.create_task(call())
    await asyncio.sleep(0.01)
    calling.cancel()
    await asyncio.wait([calling])
    assert handle.sent.cancelled
    assert came == [FIRST]


async def test_a_chunk_that_nobody_reads_to_its_end_is_cancelled_on_the_replica(handle: Any) -> None:
    async with aclosing(HandlePool(handle).run("a", Chunk(1, ()))) as rows:
        assert await anext(rows) == FIRST
        assert not handle.sent.cancelled
    assert handle.sent.cancelled


def raised_there(cause: BaseException) -> BaseException:
    error: BaseException = RayTaskError("run_chunk", "Traceback ...", cause).as_instanceof_cause()
    return error


@pytest.mark.parametrize(
    ("raised", "seen", "message"),
    [
        (raised_there(EngineFailed("it made no step")), EngineFailed, "^it made no step$"),
        (ActorDiedError(), ReplicaLost, "ActorDiedError: The actor died"),
        (ActorUnavailableError("no connection", None), ReplicaLost, "ActorUnavailableError"),
        (NodeDiedError("gone"), ReplicaLost, "NodeDiedError"),
        (ReplicaUnavailableError("a"), ReplicaLost, "ReplicaUnavailableError"),
        (asyncio.CancelledError(), ReplicaLost, "cancelled on the replica"),
        # Its own bug, and an actor that it called: the replica lives.
        (raised_there(BadSettings("no such field")), BadSettings, ""),
        (raised_there(ActorDiedError()), RayTaskError, ""),
        (TypeError("cannot pickle"), TypeError, "cannot pickle"),
    ],
)
async def test_a_call_says_whether_the_engine_died_or_the_replica_is_gone_or_only_the_chunk_failed(
    handle: Any, raised: BaseException, seen: type[Exception], message: str
) -> None:
    handle.raises = raised
    rows = HandlePool(handle).run("a", Chunk(1, ()))
    assert await anext(rows) == FIRST, "what came before stays"
    with pytest.raises(seen, match=message or None):
        await anext(rows)


async def test_the_controller_is_not_asked_where_replicas_are_known(
    handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status() -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(serve, "status", status)
    pool = HandlePool(handle)
    await pool.replicas()
    handle.hangs = "b"
    assert [one.replica_id for one in await pool.replicas()] == ["a"]
