"""Answers a process's peers by HTTP: POST /{method}, with a MessagePack body.

It listens on the loopback address; the first caller of another node has it listen on the node's too. A caller that
leaves cancels its call.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from serve_app.peers.peer import BEAT, BEAT_S, ERROR, VALUE, Failure, encode, frame

LOOPBACK = "127.0.0.1"
# Serve kills a replica that takes longer than its graceful_shutdown_timeout_s.
GRACE_S = 3600.0


class Method(NamedTuple):
    """`call` gets a `request` and yields what MessagePack can hold."""

    request: type
    call: Callable[[Any], AsyncGenerator[Any]]


class Server:
    """`node_address` is where other nodes reach this one; calls that are open at the end have `grace_s` left."""

    def __init__(self, methods: Mapping[str, Method], node_address: str, grace_s: float = GRACE_S) -> None:
        self.token = secrets.token_urlsafe(32)
        self._methods = methods
        self._node_address = node_address
        self._urls: dict[str, str] = {}
        self._opening = asyncio.Lock()
        app = web.Application(client_max_size=0)
        app.router.add_post("/{method}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=grace_s)

    async def start(self) -> None:
        await self._runner.setup()
        await self._listen(LOOPBACK)

    async def url(self, *, same_node: bool) -> str:
        address = LOOPBACK if same_node else self._node_address
        async with self._opening:
            return self._urls.get(address) or await self._listen(address)

    async def _listen(self, address: str) -> str:
        await web.TCPSite(self._runner, address, 0).start()
        port = self._runner.addresses[-1][1]
        self._urls[address] = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        return self._urls[address]

    async def stop(self) -> None:
        """Take no more calls, and wait for those that are open."""
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise web.HTTPUnauthorized
        method = self._methods.get(request.match_info["method"])
        if method is None:
            raise web.HTTPNotFound
        try:
            asked: Any = msgspec.msgpack.decode(await request.read(), type=method.request)
        except msgspec.MsgspecError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        response = web.StreamResponse()
        await response.prepare(request)
        beating = asyncio.create_task(_beat(response))
        try:
            async with aclosing(method.call(asked)) as answers:
                async for answer in answers:
                    await response.write(frame(VALUE, encode(answer)))
        except Exception as error:
            with suppress(ConnectionError):  # the caller left
                await response.write(frame(ERROR, encode(Failure(type(error).__name__, str(error)))))
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await beating
        return response


async def _beat(response: web.StreamResponse) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        await response.write(frame(BEAT))
