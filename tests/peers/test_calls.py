"""Calls between a server and a client in one process, and to processes that stop or die."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing

import msgspec
import psutil
import pytest

from serve_app.errors import EngineFailed, ReplicaLost
from serve_app.peers import server as server_module
from serve_app.peers.calls import PeerFailed, call, stream
from serve_app.peers.peer import Peer
from tests.peers.kit import Methods, serving


async def until(condition) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("same_node", [True, False])
async def test_what_a_method_yields_comes_in_order_on_this_node_and_between_nodes(same_node: bool) -> None:
    async with serving(Methods(), same_node=same_node) as (_, peer):
        assert [number async for number in stream(peer, "count", 1000, int)] == [*range(1000)]


async def test_a_large_request_and_a_large_answer_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    said = os.urandom(20_000_000)
    async with serving(Methods()) as (_, peer):
        assert await call(peer, "echo", said, bytes) == said


async def test_parts_come_as_they_are_yielded() -> None:
    async with serving(Methods()) as (_, peer), aclosing(stream(peer, "hang", "x", int)) as answers:
        assert await asyncio.wait_for(anext(answers), 5) == 0


@pytest.mark.parametrize("same_node", [True, False])
async def test_leaving_cancels_the_method(same_node: bool) -> None:
    methods = Methods()
    async with serving(methods, same_node=same_node) as (_, peer):
        async with aclosing(stream(peer, "hang", "left", int)) as answers:
            await anext(answers)
        await until(lambda: methods.ended == ["left"])


async def test_cancelling_the_caller_cancels_the_method() -> None:
    methods = Methods()
    async with serving(methods) as (_, peer):
        calling = asyncio.create_task(call(peer, "hang", "cancelled", int))
        await until(lambda: methods.open)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await until(lambda: methods.ended == ["cancelled"])


async def test_a_caller_that_does_not_read_holds_the_method_back() -> None:
    methods = Methods()
    async with serving(methods) as (_, peer), aclosing(stream(peer, "big", 1_000_000, bytes)) as answers:
        await anext(answers)
        await asyncio.sleep(0.5)
        assert methods.open < 10


@pytest.mark.parametrize(
    ("raised", "seen", "said"),
    [(EngineFailed("no step"), EngineFailed, "^no step$"), (TypeError("a bug"), PeerFailed, "^TypeError: a bug$")],
)
async def test_a_methods_error_comes_after_what_it_yielded(raised: Exception, seen: type[Exception], said: str) -> None:
    methods = Methods()
    methods.error = raised
    async with serving(methods) as (_, peer):
        answers = stream(peer, "count", 3, int)
        assert [await anext(answers) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(seen, match=said):
            await anext(answers)


async def test_a_method_that_is_cancelled_there_is_a_lost_replica() -> None:
    methods = Methods()
    methods.error = asyncio.CancelledError()
    async with serving(methods) as (_, peer):
        with pytest.raises(ReplicaLost):
            await call(peer, "count", 1, int)


async def test_a_server_that_stops_lets_calls_end_and_takes_no_more() -> None:
    methods = Methods()
    async with serving(methods, grace_s=5) as (server, peer):
        answers = stream(peer, "hang", "x", int)
        await anext(answers)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.2)
        with pytest.raises(ReplicaLost):
            await call(peer, "count", 1, int)
        assert methods.open
        await answers.aclose()
        await asyncio.wait_for(stopping, 3)


async def test_nobody_without_the_token_is_answered() -> None:
    async with serving(Methods()) as (_, peer):
        for token in ("", "other", "é"):
            with pytest.raises(ReplicaLost, match="another process"):
                await call(msgspec.structs.replace(peer, token=token), "count", 1, int)


async def test_a_call_that_the_peer_does_not_know_or_cannot_read_is_no_loss_of_it() -> None:
    async with serving(Methods()) as (_, peer):
        for method, request in (("nothing", 1), ("count", "text")):
            with pytest.raises(PeerFailed, match="does not take this call"):
                await call(peer, method, request, int)
        assert await call(peer, "count", 1, int) == 0


async def test_other_machines_reach_it_only_once_one_of_them_asks() -> None:
    def listening() -> set[str]:
        found = psutil.Process().net_connections("inet")
        return {at.laddr.ip for at in found if at.status == psutil.CONN_LISTEN} - before

    before: set[str] = set()
    before = listening()
    async with serving(Methods()) as (server, _):
        assert listening() == {"127.0.0.1"}
        urls = {await server.url(same_node=False) for _ in range(3)}
        assert len(urls) == 1
        assert listening() == {"127.0.0.1", "127.0.0.2"}


async def test_a_node_of_ipv6_is_reached_too() -> None:
    async with serving(Methods(), same_node=False, node="::1") as (_, peer):
        assert await call(peer, "count", 1, int) == 0


async def test_a_token_is_in_no_text_of_a_peer() -> None:
    async with serving(Methods()) as (server, peer):
        assert server.token not in f"{peer} {peer!r}"


async def test_a_peer_that_works_in_silence_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BEAT_S", 0.1)
    methods = Methods()
    async with serving(methods) as (_, peer), aclosing(stream(peer, "hang", "x", int, silent_s=0.5)) as answers:
        await anext(answers)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(answers), 1.5)


# --- another process ---

SERVER = """
import asyncio, sys
from tests.peers.kit import Methods, serving

async def main():
    async with serving(Methods(), same_node=sys.argv[1] == "True") as (server, peer):
        print(peer.url, peer.token, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.fixture(params=[True, False])
def other(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], Peer]]:
    from tests.fakes import replica

    process = subprocess.Popen([sys.executable, "-c", SERVER, str(request.param)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url, token = process.stdout.readline().split()
    yield process, Peer(replica("a"), url, token)
    process.kill()
    process.wait()
    process.stdout.close()


async def test_a_peer_that_is_killed_is_lost_at_once(other: tuple[subprocess.Popen[str], Peer]) -> None:
    process, peer = other
    async with aclosing(stream(peer, "hang", "x", int)) as answers:
        await anext(answers)
        process.kill()
        started = time.monotonic()
        with pytest.raises(ReplicaLost, match="a is gone or silent"):
            await anext(answers)
    assert time.monotonic() - started < 2
    with pytest.raises(ReplicaLost):
        await call(peer, "count", 1, int)


async def test_a_peer_that_is_stopped_is_lost_after_the_silence(other: tuple[subprocess.Popen[str], Peer]) -> None:
    process, peer = other
    async with aclosing(stream(peer, "hang", "x", int, silent_s=0.5)) as answers:
        await anext(answers)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ReplicaLost, match="a is gone or silent"):
            await asyncio.wait_for(anext(answers), 5)
    with pytest.raises(ReplicaLost):
        await asyncio.wait_for(call(peer, "count", 1, int, silent_s=0.5), 5)


async def test_an_address_where_nobody_listens_is_a_lost_replica() -> None:
    from tests.fakes import replica

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ReplicaLost):
        await call(Peer(replica("a"), f"http://127.0.0.1:{port}", ""), "count", 1, int)
