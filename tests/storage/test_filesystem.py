import gzip
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from pyarrow.fs import LocalFileSystem, S3FileSystem

from serve_app.addresses import Reach
from serve_app.errors import BadSettings, StoreError
from serve_app.storage.filesystem import Folder, join, resolve, shown


@pytest.mark.parametrize("url", ["{}/a b.txt", "file://{}/a%20b.txt"])
def test_a_local_file_is_found_by_path_and_by_url(tmp_path: Path, url: str) -> None:
    (tmp_path / "a b.txt").write_text("text")
    filesystem, path = resolve(url.format(tmp_path))
    assert isinstance(filesystem, LocalFileSystem)
    assert path == str(tmp_path / "a b.txt")


def test_a_relative_path_is_of_the_present_folder_and_a_tilde_of_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve("runs/../data?.csv")[1] == str(tmp_path / "data?.csv")
    assert resolve("~/runs")[1] == "/home/somebody/runs"


def test_an_s3_compatible_store_is_an_s3_url_with_its_endpoint() -> None:
    filesystem, path = resolve("s3://bucket/some/path?endpoint_override=127.0.0.1:1&scheme=http")
    assert isinstance(filesystem, S3FileSystem)
    assert path == "bucket/some/path"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "rows.csv").write_text("custom_id\n1\n")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_on_the_web_is_read_with_its_query(web: str) -> None:
    filesystem, path = resolve(f"{web}/rows.csv?signature=x", Reach.of([web], "source_urls"))
    assert path.endswith("?signature=x")
    with filesystem.open_input_stream(path) as file:
        assert file.read() == b"custom_id\n1\n"


def test_a_protocol_that_only_fsspec_knows_is_read() -> None:
    filesystem, path = resolve("memory://folder/rows.csv")
    with filesystem.open_output_stream(path) as file:
        file.write(b"rows")
    again, path = resolve("memory://folder/rows.csv")
    with again.open_input_file(path) as file:
        assert file.read() == b"rows"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nope://bucket/key?token=secret", "nope://bucket/key: .*nope"),
        ("s3://bucket/key?bogus=1", "s3://bucket/key: .*bogus"),
        ("file://relative/path", "file://relative/path: .*relative"),
        ("s3://id:secret@bucket/key", "s3://bucket/key: the URL holds a password"),
        ("s3://id:sec/ret+secret@bucket/key", "s3://bucket/key: the URL holds a password"),
        ("ftp://me:12@host/key", "ftp://host/key: the URL holds a password"),
        ("https://me:secret@host/key", "https://host/key: the URL holds a password"),
    ],
)
def test_a_url_that_leads_nowhere_says_why_and_keeps_secrets(url: str, message: str) -> None:
    with pytest.raises(BadSettings, match=f"^{message}") as caught:
        resolve(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://host:8000/a@b", "http://[::1]:8000/a@b", "abfs://container@account/a:b@c", "s3://bucket/a:b@c", "/a:b@c"],
)
def test_a_port_and_a_path_are_no_password(url: str) -> None:
    assert shown(f"{url}?signature=x" if "://" in url else url) == url


def test_a_file_below_a_url_keeps_the_query_at_the_end() -> None:
    assert join("s3://bucket/runs/?scheme=http", "job", "a.csv") == "s3://bucket/runs/job/a.csv?scheme=http"
    assert join("/data/what?/runs", "job", "a.csv") == "/data/what?/runs/job/a.csv"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    folder = Folder.at(str(tmp_path))
    folder.write("file", b"long before")
    folder.write("file", b"now")
    assert path.read_bytes() == b"now"
    assert os.listdir(tmp_path) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_is_on_disk_before_it_gets_its_name_and_the_name_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = mock.Mock()
    monkeypatch.setattr(os, "replace", steps.rename)
    monkeypatch.setattr(os, "fsync", steps.sync)
    Folder.at(str(tmp_path)).write("file", b"data")
    assert [name for name, _, _ in steps.mock_calls] == ["sync", "rename", "sync"]


def test_a_file_appears_only_once_it_is_closed_and_never_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    with Folder.at(str(tmp_path)).open_output(path.name) as file:
        file.write(gzip.compress(b"whole"))
        assert not path.exists()
    assert gzip.decompress(path.read_bytes()) == b"whole"
    with suppress(RuntimeError), Folder.at(str(tmp_path)).open_output(path.name) as file:
        file.write(b"half")
        raise RuntimeError
    assert gzip.decompress(path.read_bytes()) == b"whole"
    assert os.listdir(tmp_path) == ["file.gz"]


def test_what_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*/no/file: No such file or directory"):
        Folder.at(str(tmp_path / "no")).write("file", b"")


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    assert folder.find("nothing") is None
    with pytest.raises(StoreError, match=r"cannot read .*/nothing: .*"):
        folder.read("nothing")


@pytest.mark.parametrize(
    ("url", "path", "key"),
    [
        ("s3://bucket?endpoint_override=127.0.0.1:1&scheme=http", "bucket", "file"),
        ("s3://bucket/runs/?endpoint_override=127.0.0.1:1&scheme=http", "bucket/runs", "runs/file"),
        ("gs://bucket/runs", "bucket/runs", "runs/file"),
        ("gcs://bucket/runs", "bucket/runs", "runs/file"),
        ("abfss://container@account.dfs.core.windows.net/runs", "container/runs", "runs/file"),
    ],
)
def test_arrow_reads_what_the_bucket_writes(url: str, path: str, key: str) -> None:
    folder = Folder.at(url)
    assert (folder.path.rstrip("/"), folder._key("file")) == (path, key)
    assert not folder.local


@pytest.mark.parametrize("url", ["memory://runs", "http://127.0.0.1:1/runs"])
def test_a_store_where_files_are_not_replaced_whole_is_refused(url: str) -> None:
    with pytest.raises(BadSettings, match=f"{url}: cannot keep jobs"):
        Folder.at(url)
