"""Conditional writes, in a store in memory and to a server that records what it is asked."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from unittest import mock
from urllib.parse import unquote

import obstore
import pytest
from obstore.store import MemoryStore
from pyarrow.fs import GcsFileSystem, S3FileSystem

from benchmarks.store_model.backends import Backend
from benchmarks.store_model.schedule import hooked
from serve_app.errors import BadSettings, FileChanged
from serve_app.storage import bucket as buckets
from serve_app.storage.bucket import Bucket
from serve_app.storage.filesystem import Folder


def test_an_object_is_replaced_only_as_it_was_seen() -> None:
    bucket = Bucket(MemoryStore())
    first = bucket.put_if("key", b"1", None)
    assert bucket.get("key") == (b"1", first)
    with pytest.raises(FileChanged):
        bucket.put_if("key", b"2", None)
    second = bucket.put_if("key", b"2", first)
    with pytest.raises(FileChanged):
        bucket.put_if("key", b"3", first)
    assert bucket.get("key") == (b"2", second)
    bucket.delete("key")
    bucket.delete("key")
    with pytest.raises(FileChanged):
        bucket.put_if("key", b"3", second)
    with pytest.raises(FileNotFoundError):
        bucket.get("key")


def test_a_write_that_the_client_sends_again_is_not_taken_for_another_ones() -> None:
    bucket = Bucket(MemoryStore())

    def twice(*args: Any, **options: Any) -> Any:  # the first answer was lost on the way
        obstore.put(*args, **options)
        return obstore.put(*args, **options)

    with mock.patch.object(buckets, "obstore", hooked(obstore, put=twice)):
        first = bucket.put_if("key", b"1", None)
        second = bucket.put_if("key", b"2", first)
    assert bucket.get("key") == (b"2", second)


@pytest.mark.parametrize("size", [10, 20 << 20])  # in one request, and in pieces
def test_a_write_that_fails_leaves_what_stood_there(size: int) -> None:
    bucket = Bucket(MemoryStore())
    bucket.put("key", b"before")
    with suppress(RuntimeError), bucket.writer("key") as file:
        file.write(b"x" * size)
        raise RuntimeError
    assert bucket.get("key")[0] == b"before"
    with bucket.writer("key") as file:
        file.write(b"x" * size)
    assert bucket.get("key")[0] == b"x" * size


def test_a_server_that_ignores_conditions_cannot_keep_jobs() -> None:
    def ignorant(store: Any, key: str, data: Any, mode: Any = None) -> Any:
        return obstore.put(store, key, data)

    with Backend("memory") as backend:
        folder = backend.folder()
        folder.check()
        with (
            mock.patch.object(buckets, "obstore", hooked(obstore, put=ignorant)),
            pytest.raises(BadSettings, match="s3://bucket/.*-1: cannot keep jobs: the server ignores If-None-Match"),
        ):
            folder.check()
        assert folder.list() == []


class Recorder(http.server.BaseHTTPRequestHandler):
    seen: list[tuple[str, dict[str, str]]]

    def do_PUT(self) -> None:
        self.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        for name, value in (("ETag", '"tag"'), ("x-goog-generation", "7"), ("Content-Length", "0")):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    class Handler(Recorder):
        seen: list[tuple[str, dict[str, str]]] = []  # noqa: RUF012  # of this server

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", Handler.seen
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("place", "first", "second"),
    [
        ("s3://bucket", {"if-none-match": "*"}, {"if-match": '"tag"'}),
        ("gs://bucket", {"x-goog-if-generation-match": "0"}, {"x-goog-if-generation-match": "7"}),
    ],
)
def test_conditions_are_sent_as_each_cloud_wants_them(
    place: str,
    first: dict[str, str],
    second: dict[str, str],
    recorder: tuple[str, list[tuple[str, dict[str, str]]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, seen = recorder
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    none = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    account = {"gcs_base_url": f"http://{endpoint}", "disable_oauth": True, **none}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    filesystem = S3FileSystem(region="eu-west-1") if "s3" in place else GcsFileSystem(anonymous=True)
    url = f"{place}/runs?endpoint_override={endpoint}&scheme=http"
    folder = Folder(filesystem, "bucket/runs", url, Bucket.at(url, filesystem))
    version = folder.replace("file", b"1", None)
    folder.child("below").replace("file", b"2", version)
    assert [unquote(path).partition("?")[0] for path, _ in seen] == ["/bucket/runs/file", "/bucket/runs/below/file"]
    for (_, sent), wanted in zip(seen, (first, second), strict=True):
        assert wanted.items() <= sent.items()


def test_keys_of_a_profile_are_found_where_there_is_one(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert buckets._profile() is None
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = kept\naws_secret_access_key = too\n")
    assert buckets._profile()()["access_key_id"] == "kept"
    with (
        mock.patch.dict("sys.modules", {"obstore.auth.boto3": None}),
        pytest.raises(ValueError, match="pip install boto3"),
    ):
        buckets._profile()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the environment")
    assert buckets._profile() is None


def test_a_writer_that_is_faster_than_its_server_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, puts = threading.Event(), threading.Semaphore(0)

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(b"<R><UploadId>u</UploadId><ETag>e</ETag></R>")

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            puts.release()
            answered.wait()
            self._answer(b"")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    written = 0

    def write(bucket: Bucket) -> None:
        nonlocal written
        with bucket.writer("key") as file:
            for _ in range(128):
                file.write(b"x" * (1 << 20))
                written += 1 << 20

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"s3://bucket/x?endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
        writing = threading.Thread(target=write, args=[Bucket.at(url, S3FileSystem(region="eu-west-1"))])
        writing.start()
        for _ in range(buckets.PIECES):
            assert puts.acquire(timeout=10)
        assert not puts.acquire(timeout=0.5)
        assert written <= (buckets.PIECES + 2) * buckets.PIECE_BYTES
        answered.set()
        writing.join()
        server.shutdown()
        serving.join()
    assert written == 128 << 20
