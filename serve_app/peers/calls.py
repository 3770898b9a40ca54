"""Calls of a peer's methods. One connection a call: its end is the peer's, at once."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import aiohttp
import msgspec

from serve_app.errors import EngineFailed, ReplicaLost, ServeAppError
from serve_app.peers.peer import ERROR, HEAD_BYTES, SILENT_S, VALUE, Failure, Peer, encode

T = TypeVar("T")

CONNECT_S = 5.0


class PeerFailed(ServeAppError):
    """Raised when a peer's method raised, other than EngineFailed, or is not there."""


async def stream(
    peer: Peer, method: str, request: Any, kind: type[T], *, silent_s: float = SILENT_S
) -> AsyncGenerator[T]:
    """What the method yields, decoded as `kind`. Closing cancels it there.

    Raises ReplicaLost when the peer is gone or silent for `silent_s`, EngineFailed as there, else PeerFailed.
    """
    try:
        async with _session(peer, silent_s) as session, session.post(f"/{method}", data=_body(request)) as answer:
            if answer.status == 401:
                raise ReplicaLost(f"another process has the place of {peer.replica.replica_id}")
            if answer.status != 200:
                raise PeerFailed(f"{peer.replica.replica_id} does not take this call: HTTP {answer.status}")
            decode = msgspec.msgpack.Decoder(kind).decode
            while head := await answer.content.read(1):
                head += await answer.content.readexactly(HEAD_BYTES - 1)
                body = await answer.content.readexactly(int.from_bytes(head[:4], "big"))
                if head[4:] == VALUE:
                    yield decode(body)
                elif head[4:] == ERROR:
                    raise _error(msgspec.msgpack.decode(body, type=Failure))
    except (aiohttp.ClientError, asyncio.IncompleteReadError, TimeoutError, OSError) as error:
        raise ReplicaLost(f"{peer.replica.replica_id} is gone or silent: {type(error).__name__}: {error}") from error


async def call(peer: Peer, method: str, request: Any, kind: type[T], *, silent_s: float = SILENT_S) -> T:
    """The one thing that the method yields. Raises as `stream`."""
    found = [answer async for answer in stream(peer, method, request, kind, silent_s=silent_s)]
    if len(found) != 1:
        raise PeerFailed(f"{method} gave {len(found)} answers")
    return found[0]


def _session(peer: Peer, silent_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        peer.url,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"authorization": f"Bearer {peer.token}"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silent_s),
        read_bufsize=2**18,
    )


def _body(request: Any) -> io.BytesIO:
    return io.BytesIO(encode(request))


def _error(failure: Failure) -> ServeAppError:
    if failure.kind == EngineFailed.__name__:
        return EngineFailed(failure.message)
    return PeerFailed(f"{failure.kind}: {failure.message}")
