"""Files by URL: a local folder, an object store, or anything that pyarrow or fsspec reads.

Knows file systems, and how each makes a file visible whole or not at all. Does not know jobs or outcomes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from uuid import uuid4

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from serve_app.addresses import PUBLIC, Reach
from serve_app.atomic import atomic_write, sync_folder
from serve_app.errors import BadSettings, FileChanged, StoreError
from serve_app.storage import web
from serve_app.storage.bucket import Bucket

# What `FileSystem.from_uri` knows, by its documentation; fsspec is asked for the others.
ARROW_SCHEMES = {"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"}
# Where a file appears at once and whole: object stores at the end of the upload, a local folder by rename.
ATOMIC = {"local", "s3", "gcs", "abfs"}
# Held while one of the folder's files is replaced on condition, which takes a write and two syncs of the disk.
LOCK, LOCK_WAIT_S = ".lock", 10.0
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# What a file held when it was read: on a local disk its content, else what the server calls it.
Version = bytes | dict[str, str]


def resolve(url: str, reach: Reach = PUBLIC) -> tuple[FileSystem, str]:
    """The file system and the path in it of a local path (made absolute, `~` expanded) or a URL.

    An S3-compatible store is `s3://bucket/path?endpoint_override=host:port&scheme=http`. Web servers are asked only
    within `reach`. Raises BadSettings for a URL that is wrong, of an unknown scheme or with a password in it.
    """
    scheme = SCHEME.match(url)
    if scheme is None:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    base = url.partition("?")[0]
    if "@" in (authority := base[scheme.end() :].partition("/")[0]) and ":" in authority.rpartition("@")[0]:
        place = scheme[0] + authority.rpartition("@")[2]
        # Jobs, their status and messages repeat a URL.
        raise BadSettings(f"{place}: the URL holds a password: give it by the environment or the machine's role")
    try:
        if scheme[1].lower() in ARROW_SCHEMES:
            return FileSystem.from_uri(url)
        return _fsspec(url, web.options(reach) if scheme[1].lower() in web.SCHEMES else {})
    except (ValueError, ImportError, OSError, pa.ArrowException) as error:
        raise BadSettings(f"{base}: {reason(error)}") from error  # without the query, which may be signed


def _fsspec(url: str, options: dict[str, Any]) -> tuple[FileSystem, str]:
    import fsspec  # type: ignore[import-untyped]

    filesystem, path = fsspec.url_to_fs(url, **options)
    return PyFileSystem(FSSpecHandler(filesystem)), path  # type: ignore[abstract]  # the stubs miss its methods


def join(url: str, *names: str) -> str:
    """The URL of a file below `url`, whose query stays at the end."""
    if SCHEME.match(url) is None:
        return os.path.join(url, *names)
    base, mark, query = url.partition("?")
    return "/".join([base.rstrip("/"), *names]) + mark + query


@dataclass(frozen=True)
class Folder:
    """A folder whose files are replaced atomically. `url` leads to it by `resolve`. All methods raise StoreError."""

    filesystem: FileSystem
    path: str
    url: str
    bucket: Bucket | None = None  # None on this machine's file system

    @classmethod
    def at(cls, url: str) -> Folder:
        """The folder of a URL, which need not exist. Raises BadSettings where files cannot be replaced atomically."""
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
        """Whether it lies in this machine's file system, where locks and folders exist."""
        return self.bucket is None

    def child(self, *names: str) -> Folder:
        """A folder below."""
        return Folder(self.filesystem, "/".join([self.path, *names]), join(self.url, *names), self.bucket)

    def make(self) -> None:
        """Create the folder and those above, durably. Object stores have none."""
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
        """A small file, whole."""
        with self._errors("read", name):
            return self._get(name)[0]

    def find(self, name: str) -> bytes | None:
        """A small file, whole, or None if there is none."""
        found = self.load(name)
        return None if found is None else found[0]

    def load(self, name: str) -> tuple[bytes, Version] | None:
        """A small file, whole, and its version for `replace`; None if there is none."""
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
        """Write the file so that it has all of `data` or is as it was, even if the power goes."""
        if self.bucket is None:
            with self.open_output(name) as file:
                file.write(data)
        else:
            with self._errors("write", name):
                self.bucket.put(self._key(name), data)

    def replace(self, name: str, data: bytes, seen: Version | None) -> Version:
        """`write` if the file is still the version that was `seen`, None: if there is none; its new version.

        Raises FileChanged if not, and then nothing is written. After another StoreError it may be written or not.
        """
        with self._errors("write", name):
            if self.bucket is not None:
                return self.bucket.put_if(self._key(name), data, cast("dict[str, str] | None", seen))
            # Object stores compare and write in one request. Here everybody who replaces a file holds the lock.
            with FileLock(f"{self.path}/{LOCK}", timeout=LOCK_WAIT_S):
                if self.find(name) != seen:
                    raise FileChanged(f"store: {self.path}/{name} was replaced by another process")
                self.write(name, data)
            return data

    @contextmanager
    def open_output(self, name: str) -> Iterator[BinaryIO]:
        """A new file that appears whole, durable and in place of the one before, once the block is left.

        An exception in the block leaves what was there.
        """
        with self._errors("write", name):
            if self.bucket is None:
                with atomic_write(f"{self.path}/{name}") as file:
                    yield file
            else:
                with self.bucket.writer(self._key(name)) as file:
                    yield file

    def list(self, *, recursive: bool = False) -> list[FileInfo]:
        """What lies in the folder; nothing if it does not exist."""
        with store_errors("read", self.filesystem, self.path):
            selector = FileSelector(self.path, allow_not_found=True, recursive=recursive)
            return self.filesystem.get_file_info(selector)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self._errors("delete", name), suppress(FileNotFoundError):
            if self.bucket is None:
                os.unlink(f"{self.path}/{name}")
            else:
                self.bucket.delete(self._key(name))

    def clear(self) -> None:
        """Delete the folder with all that lies in it, if it is there."""
        with store_errors("delete", self.filesystem, self.path):
            if self.filesystem.get_file_info(self.path).type == FileType.Directory:
                self.filesystem.delete_dir(self.path)

    def check(self) -> None:
        """Write and delete a file, to see that this works. Raises BadSettings where writes have no conditions."""
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
    """Raise what the file system or Arrow raises in the block as StoreError with path and reason."""
    try:
        yield
    except Timeout as error:
        raise StoreError(f"store: cannot {doing} {path}: another process holds {error.lock_file}") from error
    except (OSError, pa.ArrowException) as error:
        place = path if isinstance(filesystem, LocalFileSystem) else f"{filesystem.type_name}://{path}"
        raise StoreError(f"store: cannot {doing} {place}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an error says, on one line."""
    said = str(getattr(error, "strerror", None) or error)
    return " ".join(said.split()) or type(error).__name__
