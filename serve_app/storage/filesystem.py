"""Files by URL: a local folder, an object store, or anything that pyarrow or fsspec reads.

Knows file systems and their atomic writes. Does not know jobs or outcomes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from uuid import uuid4

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow.fs import (
    AwsStandardS3RetryStrategy,
    FileInfo,
    FileSelector,
    FileSystem,
    FileType,
    FSSpecHandler,
    LocalFileSystem,
    PyFileSystem,
    S3FileSystem,
)

from serve_app.addresses import PORTS, PUBLIC, Reach
from serve_app.atomic import atomic_write, sync_folder
from serve_app.errors import BadSettings, FileChanged, StoreError
from serve_app.storage import web
from serve_app.storage.bucket import Bucket

# By `FileSystem.from_uri`'s documentation; fsspec handles others.
ARROW_SCHEMES = {"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"}
# Atomic writes: object stores at an upload's end, local folders by rename.
ATOMIC = {"local", "s3", "gcs", "abfs"}
# Held during a conditional replace: a write and two disk syncs.
LOCK, LOCK_WAIT_S = ".lock", 10.0
# A writer that does not know of a deletion stops at its next commit.
CLEAR_TRIES, CLEAR_PAUSE_S = 10, 0.05
# Arrow's own: 111 s where an S3 server hangs, 15 minutes for Google.
GCS_RETRY_S = 10
S3_PATIENCE = {
    "connect_timeout": 5,
    "request_timeout": 10,
    "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=3),
}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# Secrets of clouds may have a /. What is a port is none.
PASSWORD = re.compile(r"(?<=://)[^/@:\[]*:(?!\d+/)[^@]*@")

# A file's version: its content on a local disk, else the server's.
Version = bytes | dict[str, str]


def resolve(url: str, reach: Reach = PUBLIC) -> tuple[FileSystem, str]:
    """The file system and path of a URL or local path (made absolute, `~` expanded).

    An S3-compatible store is `s3://bucket/path?endpoint_override=host:port&scheme=http`. Web servers are limited to
    `reach`. Raises BadSettings for an invalid URL, an unknown scheme, or a password in the URL.
    """
    scheme = SCHEME.match(url)
    if scheme is None:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    base = url.partition("?")[0]
    if PASSWORD.search(base):
        # Jobs, statuses and messages repeat URLs.
        raise BadSettings(f"{shown(url)}: the URL holds a password: give it by the environment or the machine's role")
    try:
        if scheme[1].lower() in ARROW_SCHEMES:
            return _arrow(url)
        return _fsspec(url, web.options(reach) if scheme[1].lower() in PORTS else {})
    except (ValueError, ImportError, OSError, pa.ArrowException) as error:
        raise BadSettings(f"{base}: {reason(error)}") from error  # the query may hold a signature


def _arrow(url: str) -> tuple[FileSystem, str]:
    """Arrow's own file systems, with a bound on how long they try."""
    if url.lower().startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in url:
        url += f"{'&' if '?' in url else '?'}retry_limit_seconds={GCS_RETRY_S}"
    filesystem, path = FileSystem.from_uri(url)
    if isinstance(filesystem, S3FileSystem):
        made: Any = filesystem.__reduce__()  # URLs have no words for these
        make, (options,) = made
        filesystem = make({**options, **S3_PATIENCE})
    return filesystem, path


def _fsspec(url: str, options: dict[str, Any]) -> tuple[FileSystem, str]:
    import fsspec  # type: ignore[import-untyped]

    filesystem, path = fsspec.url_to_fs(url, **options)
    return PyFileSystem(FSSpecHandler(filesystem)), path  # type: ignore[abstract]  # the stubs miss its methods


def shown(url: str) -> str:
    """The URL as a message may have it: without the query, which may be a signature, and without a password."""
    if SCHEME.match(url) is None:
        return url
    return PASSWORD.sub("", url.partition("?")[0])


def join(url: str, *names: str) -> str:
    """The URL of a file below `url`; the query stays at the end."""
    if SCHEME.match(url) is None:
        return os.path.join(url, *names)
    base, mark, query = url.partition("?")
    return "/".join([base.rstrip("/"), *names]) + mark + query


@dataclass(frozen=True)
class Folder:
    """A folder whose files are replaced atomically. `resolve` reads `url`. All methods raise StoreError."""

    filesystem: FileSystem
    path: str
    url: str
    bucket: Bucket | None = None  # None for local files

    @classmethod
    def at(cls, url: str) -> Folder:
        """The folder of a URL; it may not exist yet. Raises BadSettings without atomic replacement."""
        filesystem, path = resolve(url)
        if filesystem.type_name not in ATOMIC:
            raise BadSettings(f"{url.partition('?')[0]}: cannot keep jobs: use a folder, s3://, gs:// or abfss://")
        if filesystem.type_name == "local":
            return cls(filesystem, path, path)
        try:
            return cls(filesystem, path, url, Bucket.at(url, filesystem))
        except ValueError as error:
            raise BadSettings(f"{url.partition('?')[0]}: {reason(error)}") from error

    @property
    def local(self) -> bool:
        """Whether it is on this machine's file system, with locks and folders."""
        return self.bucket is None

    def child(self, *names: str) -> Folder:
        """A folder below."""
        return Folder(self.filesystem, "/".join([self.path, *names]), join(self.url, *names), self.bucket)

    def make(self) -> None:
        """Durably create the folder and its parents. Object stores have none."""
        if not self.local:
            return
        with store_errors("write", self.filesystem, self.path):
            missing, above = [], self.path
            while not os.path.isdir(above):
                missing.append(above)
                above = os.path.dirname(above)
            os.makedirs(self.path, exist_ok=True)
            for folder in missing:
                sync_folder(os.path.dirname(folder))

    def read(self, name: str) -> bytes:
        """A small file's content."""
        with self._errors("read", name):
            return self._get(name)[0]

    def find(self, name: str) -> bytes | None:
        """A small file's content; None if absent."""
        found = self.load(name)
        return None if found is None else found[0]

    def load(self, name: str) -> tuple[bytes, Version] | None:
        """A small file's content and its version for `replace`; None if absent."""
        with self._errors("read", name):
            try:
                return self._get(name)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _get(self, name: str) -> tuple[bytes, Version]:
        if self.bucket is not None:
            return self.bucket.get(self._key(name))
        with open(f"{self.path}/{name}", "rb") as file:
            data = file.read()
        return data, data

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write the file atomically and durably."""
        if self.bucket is None:
            with self.open_output(name) as file:
                file.write(data)
        else:
            with self._errors("write", name):
                self.bucket.put(self._key(name), data)

    def replace(self, name: str, data: bytes, seen: Version | None) -> Version:
        """`write` if the file's version is `seen` (None: absent). Returns the new version.

        Raises FileChanged otherwise, without writing. After another StoreError it may be written or not.
        """
        with self._errors("write", name):
            if self.bucket is not None:
                return self.bucket.put_if(self._key(name), data, cast("dict[str, str] | None", seen))
            # Object stores compare and write in one request; local writers lock.
            with FileLock(f"{self.path}/{LOCK}", timeout=LOCK_WAIT_S):
                if self.find(name) != seen:
                    raise FileChanged(f"store: {self.path}/{name} was replaced by another process")
                self.write(name, data)
            return data

    @contextmanager
    def open_output(self, name: str) -> Iterator[BinaryIO]:
        """A new file that atomically and durably replaces the old one at the block's end.

        An exception in the block keeps the old file.
        """
        with self._errors("write", name):
            if self.bucket is None:
                with atomic_write(f"{self.path}/{name}") as file:
                    yield file
            else:
                with self.bucket.writer(self._key(name)) as file:
                    yield file

    def list(self, *, recursive: bool = False) -> list[FileInfo]:
        """The folder's files; none if it does not exist."""
        with store_errors("read", self.filesystem, self.path):
            selector = FileSelector(self.path, allow_not_found=True, recursive=recursive)
            return self.filesystem.get_file_info(selector)

    def delete(self, name: str) -> None:
        """Delete a file, if present."""
        with self._errors("delete", name), suppress(FileNotFoundError):
            if self.bucket is None:
                os.unlink(f"{self.path}/{name}")
            else:
                self.bucket.delete(self._key(name))

    def clear(self) -> None:
        """Delete the folder and its content, if present."""
        with store_errors("delete", self.filesystem, self.path):
            for tries_left in reversed(range(CLEAR_TRIES)):
                if self.filesystem.get_file_info(self.path).type != FileType.Directory:
                    return
                try:
                    return self.filesystem.delete_dir(self.path)
                except OSError:  # another process may have written a file meanwhile
                    if not tries_left:
                        raise
                    time.sleep(CLEAR_PAUSE_S)

    def check(self) -> None:
        """Write and delete a test file. Raises BadSettings without conditional writes."""
        name = f".{uuid4().hex[:8]}.check"
        self.make()
        self.replace(name, b"1", None)
        try:
            self.replace(name, b"2", None)
        except FileChanged:
            return
        finally:
            self.delete(name)
        raise BadSettings(
            f"{self.url.partition('?')[0]}: cannot keep jobs: the server ignores If-None-Match, so that two drivers "
            "would overwrite each other's commits: use a store that has conditional writes"
        )

    def _key(self, name: str) -> str:
        return f"{self.path}/{name}".partition("/")[2].strip("/")

    def _errors(self, doing: str, name: str) -> AbstractContextManager[None]:
        return store_errors(doing, self.filesystem, f"{self.path}/{name}")


@contextmanager
def store_errors(doing: str, filesystem: FileSystem, path: str) -> Iterator[None]:
    """Raise the block's file system and Arrow errors as StoreError with path and reason."""
    try:
        yield
    except Timeout as error:
        raise StoreError(f"store: cannot {doing} {path}: another process holds {error.lock_file}") from error
    except (OSError, pa.ArrowException) as error:
        place = path if isinstance(filesystem, LocalFileSystem) else f"{filesystem.type_name}://{path}"
        raise StoreError(f"store: cannot {doing} {place}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An error's text on one line."""
    said = str(getattr(error, "strerror", None) or error)
    return " ".join(said.split()) or type(error).__name__
