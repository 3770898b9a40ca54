"""Uploads and downloads between a socket and an application, with queues like Serve's in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve_app.k8s.ray_cluster import environment as ray_environment
from serve_app.k8s.values import Values
from serve_app.serving import backpressure
from serve_app.serving.backpressure import BACKPRESSURE, Edge, Paced, middlewares
from serve_app.serving.haproxy.environment import variables
from tests.conftest import ROOT, served

MIB = 1 << 20
MOST_BYTES = backpressure.WINDOW_BYTES + 2 * MIB


class Queued:
    """Serve between an HTTP server and an application: all is taken at once, and kept until it is asked for."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.most = [0, 0]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        up, down = self._queue(0), self._queue(1)

        async def fetch() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await up.put(message)
            await up.put(message)

        async def call() -> None:
            await self._app(scope, up.get, down.put)
            await down.put(None)

        tasks = [asyncio.create_task(fetch()), asyncio.create_task(call())]
        try:
            while (message := await down.get()) is not None:
                await send(message)
        finally:
            for task in tasks:
                task.cancel()

    def _queue(self, which: int) -> _Counted:
        return _Counted(lambda size: self.most.__setitem__(which, max(self.most[which], size)))


class _Counted:
    def __init__(self, note: Callable[[int], None]) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._size, self._note = 0, note

    async def put(self, message: Any) -> None:
        self._size += len((message or {}).get("body", b""))
        self._note(self._size)
        self._queue.put_nowait(message)

    async def get(self) -> Any:
        message = await self._queue.get()
        self._size -= len((message or {}).get("body", b""))
        return message


class Client:
    """What an HTTP server gives to an application and takes from it."""

    def __init__(self, pieces: int, *, reads: bool = True) -> None:
        self.left, self.reads = pieces, reads
        self.sent: list[Any] = []
        self.gone = asyncio.Event()

    async def receive(self) -> Any:
        await asyncio.sleep(0)
        if self.left:
            self.left -= 1
            return {"type": "http.request", "body": b"x" * MIB, "more_body": self.left > 0}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self.reads:
            await asyncio.Event().wait()
        self.sent.append(message)

    def task(self, app: Any, path: str = "/v1/files") -> asyncio.Task[None]:
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        return asyncio.create_task(app(scope, self.receive, self.send))

    @property
    def body(self) -> int:
        return sum(len(message.get("body", b"")) for message in self.sent)


async def settled() -> None:
    for _ in range(2000):
        await asyncio.sleep(0)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


async def test_all_bytes_come_through_in_both_directions() -> None:
    client, middle = Client(100), Queued(Paced(echo))
    await client.task(Edge(middle))
    assert client.body == 100 * MIB
    assert {message["type"] for message in client.sent} == {"http.response.start", "http.response.body"}
    assert max(middle.most) <= MOST_BYTES


async def test_an_upload_waits_for_the_disk() -> None:
    used = asyncio.Semaphore(0)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        while True:
            await used.acquire()
            await receive()

    client, middle = Client(100), Queued(Paced(slow))
    task = client.task(Edge(middle))
    for _ in range(20):
        await settled()
        assert middle.most[0] <= MOST_BYTES
        used.release()
    assert 100 - client.left <= 20 + MOST_BYTES / MIB
    task.cancel()


async def test_a_download_waits_for_its_reader() -> None:
    given = 0

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal given
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * MIB, "more_body": True})
            given += MIB

    client, middle = Client(0, reads=False), Queued(Paced(endless))
    task = client.task(Edge(middle))
    await settled()
    assert 0 < given <= MOST_BYTES
    assert middle.most[1] <= MOST_BYTES
    task.cancel()


async def test_an_application_hears_that_its_reader_left() -> None:
    ended = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        listening = asyncio.ensure_future(receive())
        while not listening.done():
            await send({"type": "http.response.body", "body": b"x" * MIB, "more_body": True})
            await asyncio.sleep(0)
        assert (await listening)["type"] == (await receive())["type"] == "http.disconnect"
        ended.set()

    client = Client(0, reads=False)
    task = client.task(Edge(Queued(Paced(endless))))
    await settled()
    client.gone.set()
    await asyncio.wait_for(ended.wait(), 5)
    task.cancel()


async def test_a_server_that_ends_during_an_upload_is_an_answer_too() -> None:
    async def dies(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(10):
            await receive()

    client = Client(100)
    await client.task(Edge(Queued(Paced(dies))))
    assert [message.get("status") for message in client.sent] == [503, None]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/filesystem", "/"])
async def test_other_routes_are_left_alone(path: str) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, receive, send])

    client = Client(1)
    scope = {"type": "http", "path": path}
    await Edge(app)(scope, client.receive, client.send)
    assert seen == [scope, client.receive, client.send]


async def test_an_application_behind_another_server_is_as_it_was() -> None:
    client = Client(8)
    await client.task(Paced(echo))
    assert client.body == 8 * MIB


def test_serve_finds_it_by_the_variable() -> None:
    from ray.serve._private.utils import call_function_from_import_path

    (path,) = BACKPRESSURE.values()
    (found,), (ours,) = call_function_from_import_path(path), middlewares()
    assert found.cls is ours.cls
    assert isinstance(ours.cls(echo), Edge)


def test_a_file_and_its_answer_pass_over_sockets() -> None:
    async def answer_after(scope: Any, receive: Any, send: Any) -> None:
        message: dict[str, Any] = {"more_body": True}
        body = []
        while message["more_body"]:
            message = await receive()
            body.append(message)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for message in body:
            await send({**message, "type": "http.response.body"})

    data = bytes(range(256)) * (40 * MIB // 256)
    with served(Edge(Queued(Paced(answer_after))), lifespan="off") as base_url:
        answer = httpx.post(f"{base_url}/v1/populations", content=data, timeout=60)
    assert answer.content == data


def test_our_own_starts_and_manifests_load_it() -> None:
    values = Values.load(ROOT / "k8s" / "values.yaml")
    for environment in (variables({}), ray_environment(values)):
        assert BACKPRESSURE.items() <= environment.items()
