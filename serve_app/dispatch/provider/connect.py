"""Connects to the provider address that was checked, whatever its name resolves to later, and reads bounded answers."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from typing import Any

import httpx

from serve_app.addresses import PORTS, Reach
from serve_app.errors import BadSettings

# Far above any model's answer.
MOST_ANSWER_BYTES = 16 << 20


class CheckedTransport(httpx.AsyncHTTPTransport):
    """Resolves a host and tries its addresses in turn. Raises BadSettings for one that `reach` does not allow."""

    def __init__(self, reach: Reach, limits: httpx.Limits) -> None:
        super().__init__(limits=limits)
        self._reach = reach

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, url = request.url.host, request.url
        port = url.port or PORTS[url.scheme]
        addresses = await self._look_up(host, port)
        request.extensions = {**request.extensions, "sni_hostname": host}  # the name in the certificate
        for last, address in enumerate(addresses, 1 - len(addresses)):
            request.url = url.copy_with(host=address)
            try:
                return await super().handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if not last:
                    raise
            finally:
                request.url = url
        raise httpx.ConnectError(f"{host} has no address")

    async def _look_up(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError(f"{host}: {error.strerror or error}") from error
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        for address in addresses:
            if refusal := self._reach.refusal(host, port, address):
                raise BadSettings(refusal, field="provider.base_url")
        return addresses


def make_client(url: str, reach: Reach, limits: httpx.Limits) -> httpx.AsyncClient:
    """A client for one provider. A proxy of the driver's environment connects by its own rules."""
    address = httpx.URL(url)
    if {"all", address.scheme} & urllib.request.getproxies().keys() and not urllib.request.proxy_bypass(address.host):
        return httpx.AsyncClient(limits=limits)
    return httpx.AsyncClient(transport=CheckedTransport(reach, limits))


async def post(client: httpx.AsyncClient, url: str, **options: Any) -> httpx.Response:
    """The answer, read whole. Raises httpx.RequestError, also for one of more than MOST_ANSWER_BYTES."""
    async with client.stream("POST", url, **options) as response:
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > MOST_ANSWER_BYTES:
                raise httpx.ReadError(f"the answer is larger than {MOST_ANSWER_BYTES >> 20} MiB")
        headers = [(name, value) for name, value in response.headers.items() if name != "content-encoding"]
        return httpx.Response(
            response.status_code, headers=headers, content=bytes(body), request=response.request,
            extensions={"reason_phrase": response.reason_phrase.encode()},
        )  # fmt: skip
