"""Sources whose server is not there, or hangs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from serve_app.addresses import Reach
from serve_app.driver.sources.files import fingerprint
from serve_app.driver.sources.source import open_source
from serve_app.errors import BadSettings
from serve_app.spec import JobSpec
from serve_app.storage import reachable, web
from serve_app.storage.reachable import endpoint_of

SCHEMES = [
    "s3://bucket/rows.{}?endpoint_override={}&scheme=http&region=us-east-1",
    "s3://bucket/rows.{}?endpoint_override={}&scheme=http",
    "gs://bucket/rows.{}?endpoint_override={}&scheme=http",
    "abfs://account@container/rows.{}?blob_storage_authority={}&enable_tls=false",
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setattr(reachable, "ANSWER_S", 0.2)
    monkeypatch.setattr(web, "CONNECT_S", 0.3)
    monkeypatch.setattr(web, "READ_S", 0.3)


@pytest.fixture
def hanging() -> Iterator[str]:
    """Connections are accepted by the system, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def refusal(url: str, place: str, kind: str) -> str:
    spec = JobSpec(source=url.format(kind, place), prompt="{text}")
    reach = Reach.of([f"http://{place}"], "source_urls")
    for read in (lambda: open_source(spec, folder_url="", reach=reach).count(), lambda: fingerprint(spec, reach)):
        began = time.monotonic()
        with pytest.raises(BadSettings) as raised:
            read()
        assert time.monotonic() - began < 5
        assert raised.value.field == "source"
        assert f"cannot read {url.format(kind, place).partition('?')[0]}: " in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("url", SCHEMES)
def test_a_store_that_hangs_is_told_in_time(url: str, kind: str, hanging: str) -> None:
    assert f"http://{hanging} does not answer within 0.2 s" in refusal(url, hanging, kind)


@pytest.mark.parametrize("url", SCHEMES)
def test_so_is_one_that_refuses(url: str, refusing: str) -> None:
    assert f"http://{refusing} cannot be reached" in refusal(url, refusing, "csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_and_a_web_server_that_hangs_or_refuses(kind: str, hanging: str, refusing: str) -> None:
    for place in (hanging, refusing):
        refusal("http://{1}/rows.{0}", place, kind)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("s3://b/x", "https://s3.amazonaws.com"),
        ("s3://b/x?region=eu-west-1", "https://s3.eu-west-1.amazonaws.com"),
        ("s3://b/x?endpoint_override=https://minio:9000", "https://minio:9000"),
        ("gs://anonymous@b/x", "https://storage.googleapis.com"),
        ("GCS://b/x", "https://storage.googleapis.com"),
        ("abfss://container@account.dfs.core.windows.net/x", "https://account.dfs.core.windows.net"),
        ("abfs://account@container/x", "https://account.blob.core.windows.net"),
        ("abfs://evil.example%2f@container/x", ""),
        ("https://example.com/x", ""),
        ("runs/x", ""),
    ],
)
def test_the_server_asked_is_the_one_that_would_be_read(
    url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert endpoint_of(urlsplit(url)) == endpoint
