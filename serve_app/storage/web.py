"""Reads files from web servers with fsspec and aiohttp, from allowed addresses only."""

from __future__ import annotations

import errno
import socket
from functools import partial
from typing import Any

from serve_app.addresses import Reach

CONNECT_S, READ_S = 5.0, 15.0


def options(reach: Reach) -> dict[str, Any]:
    """Options of fsspec's HTTPFileSystem."""
    return {"get_client": partial(_client, reach)}


async def _client(reach: Reach, **given: Any) -> Any:
    import aiohttp

    guard = Guard(reach)
    connector = aiohttp.TCPConnector(resolver=guard.resolver(), socket_factory=guard.open_socket)
    # A whole file may take its time, silence may not.
    patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
    return aiohttp.ClientSession(connector=connector, **{"timeout": patience, **given})


class Guard:
    """Limits one client's sockets to `reach`, also after redirects.

    aiohttp passes the address without its name, so lookups of allowed names are recorded.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._allowed: set[tuple[str, int]] = set()

    def resolver(self) -> Any:
        """aiohttp's resolver, recording lookups."""
        from aiohttp.resolver import ThreadedResolver

        reach, allowed = self._reach, self._allowed

        class Telling(ThreadedResolver):
            async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
                found = await super().resolve(host, port, family)
                allowed.update((one["host"], port) for one in found if not reach.refusal(host, port, one["host"]))
                return found

        return Telling()

    def open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for one result of `getaddrinfo`. Raises OSError for a disallowed address."""
        family, kind, protocol, _, (address, port, *_) = info
        refusal = "" if (address, port) in self._allowed else self._reach.refusal(address, port, address)
        if refusal:
            raise OSError(errno.EACCES, refusal)
        return socket.socket(family, kind, protocol)
