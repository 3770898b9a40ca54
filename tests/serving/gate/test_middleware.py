"""The gate around small applications: over HTTP by httpx, and message by message where the client misbehaves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.serving.gate.key_file import create_key, revoke_key
from serve_app.serving.gate.middleware import read_key
from tests.serving.gate.kit import CHAT, Site, error


async def test_a_key_opens_by_either_header_and_its_name_is_known_inside(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert (await site.post()).json()["key"] == "alice"
    async with site.client("", **{"x-api-key": site.key}) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_no_key_is_told_from_a_wrong_one_and_no_answer_repeats_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    missing, wrong = await site.post(key=""), await site.post(key="sk-wrong")
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert (error(missing)["type"], error(missing)["code"]) == ("invalid_request_error", None)
    assert (wrong.status_code, error(wrong)["code"]) == (401, "invalid_api_key")
    assert "www-authenticate" in wrong.headers
    assert "sk-wrong" not in wrong.text


async def test_revoked_and_expired_keys_are_refused_as_such(tmp_path: Path) -> None:
    site = Site(tmp_path)
    expired = create_key(site.file, "old", expires="2020-01-01T00:00:00Z")
    revoke_key(site.file, "alice")
    for key, state in ((site.key, "revoked"), (expired, "expired")):
        answer = await site.post(key=key)
        assert (answer.status_code, error(answer)["code"]) == (401, "invalid_api_key")
        assert state in error(answer)["message"]


async def test_a_key_without_the_scope_is_refused_with_403(tmp_path: Path) -> None:
    site = Site(tmp_path)
    answer = await site.post(key=create_key(site.file, "jobs", scopes=("populations",)))
    assert (answer.status_code, error(answer)["code"]) == (403, "insufficient_permissions")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/metrics", "/version", "/docs", "/tokenize", "/invocations"])
async def test_everything_but_probes_needs_a_key(tmp_path: Path, path: str) -> None:
    assert (await Site(tmp_path).post(path, key="")).status_code == 401


async def test_probes_and_preflights_need_no_key_and_other_options_do(tmp_path: Path) -> None:
    preflight = {"origin": "http://a", "access-control-request-method": "POST"}
    async with Site(tmp_path).client("") as client:
        assert (await client.get("/health")).status_code == 200
        answer = await client.options("/v1/chat/completions", headers=preflight)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        assert (await client.options("/v1/chat/completions")).status_code == 401


async def test_open_paths_are_those_behind_the_route_prefix(tmp_path: Path) -> None:
    site = Site(tmp_path, open_paths=("/open",))
    transport = httpx.ASGITransport(site.gate, root_path="/v1/populations")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v1/populations/open")).status_code == 404
        assert (await client.get("/open/v1/populations/open")).status_code == 401


async def test_without_key_files_all_may_and_a_warning_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, keys=False)
    with caplog.at_level(logging.WARNING):
        assert [(await site.post(key="")).status_code for _ in range(3)] == [200] * 3
    assert [r.getMessage() for r in caplog.records if "anybody" in r.getMessage()] != []
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


@given(st.dictionaries(st.sampled_from([b"authorization", b"x-api-key"]), st.binary(max_size=40)))
def test_no_header_however_odd_breaks_the_reading_of_keys(headers: dict[bytes, bytes]) -> None:
    assert isinstance(read_key(headers), str)


@pytest.mark.parametrize(("allowed", "expected"), [(True, "websocket.accept"), (False, "websocket.close")])
async def test_a_websocket_needs_a_key_too(tmp_path: Path, allowed: bool, expected: str) -> None:
    site = Site(tmp_path)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer " + site.key.encode())] if allowed else []
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers, "query_string": b"", "subprotocols": []}
    await site.gate(scope, receive, send)
    assert sent[0]["type"] == expected
