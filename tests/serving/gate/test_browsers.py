"""What a page of somebody else, in the browser of somebody who reaches the server, cannot do."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from serve_app.serving.apps import guarded
from serve_app.serving.gate.browsers import host_name, is_known
from serve_app.serving.gate.key_file import create_key
from serve_app.settings import ControlAccessSettings
from tests.serving.gate.kit import CHAT, Site, error

OWN = "http://127.0.0.1:8000"


def control(**access: Any) -> Any:
    app = FastAPI()

    @app.post("/jobs")
    async def submit(request: Request) -> str:
        return (await request.body()).decode("latin-1")

    @app.get("/jobs")
    async def jobs() -> str:
        return "secret"

    @app.get("/health")
    async def job_named_health() -> str:
        return "secret"

    return guarded(ControlAccessSettings(**access), app)


async def ask(app: Any, method: str, path: str = "/jobs", url: str = OWN, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url) as client:
        return await client.request(method, path, **options)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "[::1]:8000", "localhost", "a.localhost:1", "LOCALHOST.", "head-svc", "x.ns.svc.cluster.local",
     "x.ns.svc:8000", "box.local", "db.internal", socket.gethostname(), "llm.example.com", "a.b.example.org"],
)  # fmt: skip
def test_names_that_nobody_outside_can_own_are_the_servers(host: str) -> None:
    assert is_known(host_name(host), ("llm.example.com", ".example.org"))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "xexample.org", "127.1.", ".svc.a"],
)
def test_other_names_may_be_anybodys(host: str) -> None:
    assert not is_known(host_name(host), ("llm.example.com", ".example.org"))
    assert is_known(host_name(host), ("*",))


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_without_keys_a_name_pointed_here_from_outside_opens_nothing(tmp_path: Path, method: str) -> None:
    answer = await ask(control(), method, headers={"host": "rebound.evil.example"})
    assert (answer.status_code, error(answer)["code"]) == (403, "host_not_allowed")
    assert "allowed_hosts" in error(answer)["message"]
    engine = Site(tmp_path, keys=False).gate
    assert (await ask(engine, "POST", "/v1/chat/completions", json=CHAT, headers={"host": "a.b"})).status_code == 403
    assert (await ask(engine, "GET", "/health", headers={"host": "a.b"})).status_code == 200


async def test_without_keys_a_websocket_by_such_a_name_is_closed(tmp_path: Path) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [(b"host", b"evil.example")], "query_string": b""}
    await Site(tmp_path, keys=False).gate({**scope, "subprotocols": []}, receive, send)
    assert sent[0]["type"] == "websocket.close"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9000", "http://127.0.0.1"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_without_keys_a_page_of_another_origin_may_neither_ask_nor_read(origin: str, method: str) -> None:
    preflight = {"access-control-request-method": "POST"} if method == "OPTIONS" else {}
    answer = await ask(control(), method, headers={"origin": origin, **preflight})
    assert (answer.status_code, error(answer)["code"]) == (403, "origin_not_allowed")
    assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_the_servers_own_pages_and_named_origins_may(tmp_path: Path) -> None:
    assert (await ask(control(), "POST", json={}, headers={"origin": OWN})).status_code == 200
    app = control(allowed_origins=("https://app.example",))
    headers = {"origin": "https://app.example"}
    answer = await ask(app, "POST", json={}, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")
    asked = await ask(app, "OPTIONS", headers={**headers, "access-control-request-method": "DELETE"})
    assert asked.status_code == 200
    assert "DELETE" in asked.headers["access-control-allow-methods"]


async def test_with_keys_a_preflight_is_answered_and_names_do_not_matter(tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys.yaml", "alice")
    app = control(key_files=(str(tmp_path / "keys.yaml"),))
    asked = {"origin": "https://any.example", "access-control-request-method": "POST"}
    answer = await ask(app, "OPTIONS", headers=asked)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    headers = {"origin": "https://any.example", "host": "llm.example"}
    assert (await ask(app, "GET", headers=headers)).status_code == 401
    assert (await ask(app, "GET", headers={**headers, "authorization": f"Bearer {key}"})).status_code == 200


async def test_with_keys_a_job_named_health_needs_one(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.yaml", "alice")
    app = control(key_files=(str(tmp_path / "keys.yaml"),))
    assert (await ask(app, "GET", "/health")).status_code == 401
    engine = Site(tmp_path / "engine").gate
    assert (await ask(engine, "HEAD", "/health")).status_code != 401
    for method in ("DELETE", "POST", "PUT"):
        assert (await ask(engine, method, "/health")).status_code == 401


@pytest.mark.parametrize(
    "kind", ["text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "application/xml", ""]
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_control_routes_take_json_and_forms_only(kind: str, chunked: bool) -> None:
    async def parts() -> Any:
        yield b'{"rows": []}'

    answer = await ask(control(), "POST", content=parts() if chunked else b"{}", headers={"content-type": kind})
    assert (answer.status_code, error(answer)["code"]) == (415, "unsupported_content_type")
    assert (await ask(control(), "POST")).status_code == 200  # `cancel` has no body


async def test_a_compressed_body_is_refused_as_such_by_every_route(tmp_path: Path) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    body = gzip.compress(json.dumps(CHAT).encode())
    for app, path in ((control(), "/jobs"), (Site(tmp_path, keys=False).gate, "/v1/chat/completions")):
        answer = await ask(app, "POST", path, content=body, headers=headers)
        assert (answer.status_code, error(answer)["code"]) == (415, "unsupported_encoding")
        assert answer.headers["accept-encoding"] == "identity"
