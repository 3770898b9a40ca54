"""Serve's own HTTP server with a certificate, without a cluster; tests/system/test_https.py has the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.http_util import start_asgi_http_server
from ray.serve.config import HTTPOptions

from serve_app.serving.launch.certificate import Certificate
from serve_app.serving.launch.local import replicas_ready
from tests.conftest import unused_port
from tests.serving.certificates import self_signed

ANSWERS = {"/-/routes": b'{"/v1/populations": "populations"}'}
REPLICAS = b'{"data": [{}, {}], "failure": ""}'


async def application(scope: dict[str, Any], receive: object, send: Callable[[Any], Awaitable[None]]) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": ANSWERS.get(scope["path"], REPLICAS)})


def options(folder: Path, name: str) -> HTTPOptions:
    certificate, key = self_signed(folder, name)
    return HTTPOptions(port=unused_port(), ssl_certfile=str(certificate), ssl_keyfile=str(key))


async def asked(http: HTTPOptions, scheme: str, trusted: HTTPOptions | None) -> tuple[bool, int, str]:
    """What a start's question is answered by a server with these options."""
    _, server = await start_asgi_http_server(application, http, event_loop=asyncio.get_running_loop())
    try:
        while not server.started:
            await asyncio.sleep(0.005)
        certificate = Certificate.of(trusted.model_dump()) if trusted else None
        url = f"{scheme}://127.0.0.1:{http.port}"
        return await asyncio.to_thread(replicas_ready, url, certificate.context if certificate else True)
    finally:
        server.should_exit = True


def test_a_start_sees_the_replicas_through_the_servers_own_certificate(tmp_path: Path) -> None:
    http = options(tmp_path, "own")
    assert asyncio.run(asked(http, "https", http)) == (True, 2, "")


@pytest.mark.parametrize("other", [True, False])
def test_it_trusts_no_other_server_there(tmp_path: Path, other: bool) -> None:
    trusted = options(tmp_path, "other") if other else None
    assert asyncio.run(asked(options(tmp_path, "own"), "https", trusted)) == (False, 0, "")


def test_by_http_nothing_is_answered(tmp_path: Path) -> None:
    http = options(tmp_path, "own")
    assert asyncio.run(asked(http, "http", http)) == (False, 0, "")
