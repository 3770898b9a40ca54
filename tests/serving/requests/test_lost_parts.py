"""Pieces that fail, replicas that die and clients that leave."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
import pytest

from serve_app.peers.peer import Peer
from serve_app.peers.server import Method, Server
from serve_app.serving.requests import sharding as module
from serve_app.serving.requests.asgi import Answer, HttpRequest, TokenCounts
from serve_app.serving.requests.sharding import COMPLETE, ListedPeers, Sharding
from serve_app.settings import ShardingSettings
from tests.fakes import replica
from tests.serving.requests.kit import MANY, ME, FakeApp, FakePeers, post, sharding, until

# --- headers ---


async def test_every_piece_has_the_clients_headers_and_a_request_id_of_its_own() -> None:
    pool, mine = FakePeers({"a": FakeApp()}), FakeApp()
    sent = {"Authorization": "Bearer k", "X-Request-Id": "r", "X-Data": "1", "Accept-Encoding": "gzip"}
    await post(sharding(pool, mine), {"prompt": MANY}, headers=sent)
    asked = [*mine.asked, *pool.apps["a"].asked]
    assert len(asked) == 5
    assert all((h["authorization"], h["x-data"]) == ("Bearer k", "1") for h, _ in asked)
    assert all(int(headers["content-length"]) == len(body) for headers, body in asked)
    assert not any("accept-encoding" in headers for headers, _ in asked)
    ids = {headers["x-request-id"]: json.loads(body)["prompt"][0] for headers, body in asked}
    assert ids == {"r": MANY[0], "r-1": MANY[8], "r-2": MANY[16], "r-3": MANY[24], "r-4": MANY[32]}


async def test_a_request_id_in_the_body_counts_too_and_none_is_made_up() -> None:
    for fields, ids in (({"request_id": "b"}, {None, "b-1", "b-2", "b-3", "b-4"}), ({}, {None})):
        pool, mine = FakePeers({"a": FakeApp()}), FakeApp()
        await post(sharding(pool, mine), {"prompt": MANY, **fields})
        assert {h.get("x-request-id") for h, _ in [*mine.asked, *pool.apps["a"].asked]} == ids


# --- faults ---


async def test_a_refusal_is_that_of_the_whole_list_and_aborts_the_other_pieces() -> None:
    hold = asyncio.Event()
    pool, mine = FakePeers({"a": FakeApp(hold=hold)}), FakeApp()
    ask = {"prompt": [*MANY[:17], "bad", *MANY[18:]]}
    answer = await post(sharding(pool, mine), ask)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "prompt 17 is bad"
    assert json.loads(mine.asked[-1][1]) == ask
    assert pool.apps["a"].aborted == len(pool.apps["a"].asked) == 2


async def test_the_pieces_of_a_peer_that_dies_are_answered_by_others() -> None:
    pool = FakePeers({"a": FakeApp(), "b": FakeApp()}, dead={"a"})
    answer = await post(sharding(pool, piece_prompts=2), {"prompt": MANY})
    assert answer.json() == (await post(FakeApp(), {"prompt": MANY})).json()
    assert answer.headers["x-serve-app-replicas"] == "2"
    assert pool.calls["a"] == 2  # those that were open; it gets no more


async def test_a_piece_that_was_lost_goes_to_the_replica_that_has_the_request() -> None:
    names = ["a", "b", "c", "d", "e"]  # as many as are still of an older version, say
    pool = FakePeers({name: FakeApp() for name in names}, dead=set(names))
    answer = await post(sharding(pool, max_attempts=2), {"prompt": MANY})
    assert answer.json() == (await post(FakeApp(), {"prompt": MANY})).json()


async def test_an_application_that_raises_once_it_answered_has_answered() -> None:
    class Raising(FakeApp):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await super().__call__(scope, receive, send)
            raise ValueError("as Starlette does after a 500")

    answer = await post(sharding(FakePeers({"a": Raising(broken="")}), Raising(broken="")), {"prompt": MANY})
    assert answer.json()["error"]["message"] == "engine is dead"


async def test_an_engine_that_answers_500_counts_as_lost() -> None:
    pool = FakePeers({"a": FakeApp()})
    answer = await post(sharding(pool, FakeApp(broken="")), {"prompt": MANY})
    assert answer.json() == (await post(FakeApp(), {"prompt": MANY})).json()
    assert answer.headers["x-serve-app-replicas"] == "1"


async def test_when_all_engines_answer_500_so_does_the_request() -> None:
    pool = FakePeers({"a": FakeApp(broken="")})
    answer = await post(sharding(pool, FakeApp(broken="")), {"prompt": MANY})
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "engine is dead")


async def test_when_no_replica_is_left_the_answer_is_503_in_openais_shape() -> None:
    class Dying(FakeApp):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise ConnectionError("lost")

    answer = await post(sharding(FakePeers({"a": FakeApp()}, dead={"a"}), Dying()), {"prompt": MANY})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert (error["code"], error["type"], answer.headers["retry-after"]) == (None, "server_error", "5")
    assert "try again" in error["message"]


async def test_a_piece_is_tried_a_bounded_number_of_times() -> None:
    apps = {name: FakeApp(broken="poison") for name in ("a", "b", "c", "d", ME)}
    app = sharding(FakePeers({name: apps[name] for name in "abcd"}), apps[ME], max_attempts=2)
    answer = await post(app, {"prompt": [*MANY, "poison"]})
    assert answer.status_code == 500
    assert sum(b"poison" in body for app in apps.values() for _, body in app.asked) == 2


async def test_a_client_that_leaves_cancels_every_piece() -> None:
    hold = asyncio.Event()
    pool, mine = FakePeers({"a": FakeApp(hold=hold)}), FakeApp(hold=hold)
    await leave(sharding(pool, mine), lambda: len(mine.asked) == len(pool.apps["a"].asked) == 2)
    assert (mine.aborted, pool.apps["a"].aborted) == (2, 2)
    assert pool.open.total() == 0


async def test_a_request_that_serve_cancels_cancels_every_piece() -> None:
    hold = asyncio.Event()
    pool, mine = FakePeers({"a": FakeApp(hold=hold)}), FakeApp(hold=hold)
    request = asyncio.create_task(post(sharding(pool, mine), {"prompt": MANY}))
    await until(lambda: len(mine.asked) == len(pool.apps["a"].asked) == 2)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert (mine.aborted, pool.apps["a"].aborted) == (2, 2)
    assert pool.open.total() == 0


async def test_a_client_that_leaves_before_its_body_ends_is_the_engines_to_notice() -> None:
    start = {"type": "http.request", "body": b'{"prompt": ["a", ', "more_body": True}
    messages: list[dict[str, Any]] = [start, {"type": "http.disconnect"}]
    left, seen = list(messages), []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await Sharding(engine, FakePeers({"a": FakeApp()}), ME, ShardingSettings())(scope, receive, None)
    assert seen == messages


async def leave(app: Any, when: Callable[[], bool]) -> None:
    """Ask `app`, and leave once `when` holds."""
    gone = asyncio.Event()
    body = [json.dumps({"prompt": MANY}).encode()]

    async def receive() -> dict[str, Any]:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pytest.fail("an answer to nobody")

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    request = asyncio.create_task(app(scope, receive, send))
    await until(when)
    gone.set()
    async with asyncio.timeout(5):
        await request


# --- the list of peers ---


class FakeListing:
    """`answers` of each refresh; none: it takes for ever."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, 0
        self.known = answers

    async def refresh(self, timeout_s: float = 0) -> dict[str, Any]:
        self.asked += 1
        self.in_request = request_of_serve.get(None)
        if not self.answers:
            await asyncio.sleep(3600)
        return self.answers


request_of_serve: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_of_serve")


@pytest.mark.parametrize("names", [["a", "b"], []])
async def test_the_replicas_are_asked_once_for_many_requests_also_when_they_do_not_answer(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIST_TIMEOUT_S", 0.05)
    listing: Any = FakeListing(dict.fromkeys(names))
    peers = ListedPeers(listing)
    request_of_serve.set("the client's")
    listed = await asyncio.gather(*(peers.replicas() for _ in range(9)))
    assert listed == [names] * 9
    assert listing.asked == 1
    assert listing.in_request is None


async def test_a_cancelled_call_is_cancelled_on_its_replica() -> None:
    open_calls = []

    async def complete(request: HttpRequest) -> AsyncGenerator[Answer]:
        open_calls.append(request)
        try:
            await asyncio.sleep(3600)
            yield Answer(200, (), b"")
        finally:
            open_calls.clear()

    server = Server({COMPLETE: Method(HttpRequest, complete)}, "127.0.0.1", 0.1)
    await server.start()
    listing: Any = FakeListing({"a": Peer(replica("a"), await server.url(same_node=True), server.token)})
    call = asyncio.create_task(ListedPeers(listing).complete("a", HttpRequest({"headers": []}, b"")))
    await until(lambda: bool(open_calls))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: not open_calls)
    await server.stop()


async def test_a_part_crosses_to_a_peer_and_back_as_it_is() -> None:
    scope = {"type": "http", "path": "/v1/completions", "headers": [(b"a", b"\xff"), (b"b", b"")], "client": ("::1", 7)}
    sent = Answer(200, ((b"x", b"\xfe"),), b"\0body", "a", TokenCounts(3, 4))

    async def complete(request: HttpRequest) -> AsyncGenerator[Answer]:
        assert request.asgi_scope() == {**scope, "state": {}}
        assert request.body == b"\xff\0"
        yield sent

    server = Server({COMPLETE: Method(HttpRequest, complete)}, "127.0.0.1", 0.1)
    await server.start()
    listing: Any = FakeListing({"a": Peer(replica("a"), await server.url(same_node=True), server.token)})
    assert await ListedPeers(listing).complete("a", HttpRequest(scope, b"\xff\0")) == sent
    await server.stop()


def test_a_piece_is_at_least_as_large_as_set_and_leaves_half_of_a_share_to_be_pulled() -> None:
    assert ShardingSettings().piece_size(96, 2) == 12
    assert ShardingSettings().piece_size(48, 2) == 8
    assert ShardingSettings().piece_size(1000, 8) == 32
    assert ShardingSettings(open_pieces=1).piece_size(1000, 4) == 125


def test_msgspec_keeps_what_it_was_not_asked_to_read() -> None:
    raw = msgspec.json.decode(b'{"a": 1.0e5 , "b":[ 1 ]}', type=dict[str, msgspec.Raw])
    assert msgspec.json.encode(raw) == b'{"a":1.0e5,"b":[ 1 ]}'
