"""EKS Pod Identity: both readers of S3 take their keys from the agent that a pod's environment names, with its token.

Played here: the agent, and a bucket that only notes who asks.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serve_app.storage.bucket import Bucket
from serve_app.storage.filesystem import resolve

AGENT, KEY = "/v1/credentials", "ASIAOFTHEPOD"


class Place(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, str]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Place

    def do_GET(self) -> None:
        self.server.seen.append((self.path, str(self.headers.get("Authorization"))))
        end = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        keys = {"AccessKeyId": KEY, "SecretAccessKey": "s", "Token": "t", "Expiration": end, "AccountId": "1"}
        body = json.dumps(keys).encode() if self.path == AGENT else b"rows"
        self.send_response(200)
        for name, value in (("ETag", '"1"'), ("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Place]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server = Place()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "token").write_text("of-the-account")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_port}{AGENT}")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("reader", ["arrow", "obstore"])
def test_a_pods_own_role_opens_the_bucket(place: Place, reader: str) -> None:
    url = f"s3://bucket/runs?endpoint_override=127.0.0.1:{place.server_port}&scheme=http"
    filesystem, path = resolve(url)
    if reader == "arrow":
        assert filesystem.open_input_stream(f"{path}/part").read() == b"rows"
    else:
        assert Bucket.at(url, filesystem).get("runs/part")[0] == b"rows"
    assert (AGENT, "of-the-account") in place.seen
    assert all(f"Credential={KEY}/" in who for asked, who in place.seen if asked != AGENT)
    assert "/bucket/runs/part" in {asked for asked, _ in place.seen}
