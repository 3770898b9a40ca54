"""Files by URL: a local folder, an object store, or anything that pyarrow or fsspec reads.

Knows file systems, and how each makes a file visible whole or not at all. Does not know jobs or outcomes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from serve_app.atomic import atomic_write, sync_folder
from serve_app.errors import BadSettings, StoreError

# What `FileSystem.from_uri` knows, by its documentation; fsspec is asked for the others.
ARROW_SCHEMES = {"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"}
# Where a file appears at once and whole: object stores at the end of the upload, a local folder by rename.
ATOMIC = {"local", "s3", "gcs", "abfs"}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def resolve(url: str) -> tuple[FileSystem, str]:
    """The file system and the path in it of a local path (made absolute, `~` expanded) or a URL.

    An S3-compatible store is `s3://bucket/path?endpoint_override=host:port&scheme=http`. Raises BadSettings for a URL
    that is wrong, of an unknown scheme or with a password in it.
    """
    scheme = SCHEME.match(url)
    if scheme is None:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    base, _, query = url.partition("?")
    if "@" in (authority := base[scheme.end() :].partition("/")[0]) and ":" in authority.rpartition("@")[0]:
        place = scheme[0] + authority.rpartition("@")[2]
        # Jobs, their status and messages repeat a URL.
        raise BadSettings(f"{place}: the URL holds a password: give it by the environment or the machine's role")
    try:
        if scheme[1].lower() == "s3" and "allow_delayed_open" not in query:
            # One request for a small file instead of the three of a multipart upload.
            url = f"{base}?{query}{'&' if query else ''}allow_delayed_open=true"
        if scheme[1].lower() in ARROW_SCHEMES:
            return FileSystem.from_uri(url)
        return _fsspec(url)
    except (ValueError, ImportError, OSError, pa.ArrowException) as error:
        raise BadSettings(f"{base}: {reason(error)}") from error  # without the query, which may be signed


def _fsspec(url: str) -> tuple[FileSystem, str]:
    import fsspec  # type: ignore[import-untyped]

    filesystem, path = fsspec.url_to_fs(url)
    return PyFileSystem(FSSpecHandler(filesystem)), path  # type: ignore[abstract]  # the stubs miss its methods


def join(url: str, *names: str) -> str:
    """The URL of a file below `url`, whose query stays at the end."""
    if SCHEME.match(url) is None:
        return os.path.join(url, *names)
    base, mark, query = url.partition("?")
    return "/".join([base.rstrip("/"), *names]) + mark + query


@contextmanager
def open_atomically(filesystem: FileSystem, path: str) -> Iterator[BinaryIO]:
    """A new file that appears at `path`, whole, durable and in place of the one before, once the block is left.

    An exception in the block leaves nothing, and on a local disk what was there; an object store has then lost it.
    Raises StoreError.
    """
    with store_errors("write", filesystem, path):
        if isinstance(filesystem, LocalFileSystem):
            with atomic_write(path) as local:
                yield local
            return
        # By default Arrow would compress where the name ends in .gz.
        output = filesystem.open_output_stream(path, compression=None)
        try:
            yield cast("BinaryIO", output)
        except BaseException:
            with suppress(OSError):
                output.close()  # Arrow cannot abandon an upload: it ends, and goes
                filesystem.delete_file(path)
            raise
        output.close()


def write_atomically(filesystem: FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Write the file so that `path` has all of `data` or is as it was, even if the power goes. Raises StoreError."""
    with open_atomically(filesystem, path) as file:
        file.write(data)


@dataclass(frozen=True)
class Folder:
    """A folder whose files are replaced atomically. `url` leads to it by `resolve`. All methods raise StoreError."""

    filesystem: FileSystem
    path: str
    url: str

    @classmethod
    def at(cls, url: str) -> Folder:
        """The folder of a URL, which need not exist. Raises BadSettings where files cannot be replaced atomically."""
        filesystem, path = resolve(url)
        if filesystem.type_name not in ATOMIC:
            raise BadSettings(f"{url.partition('?')[0]}: cannot keep jobs: use a folder, s3://, gs:// or abfss://")
        return cls(filesystem, path, path if filesystem.type_name == "local" else url)

    @property
    def local(self) -> bool:
        """Whether it lies in this machine's file system, where locks and folders exist."""
        return isinstance(self.filesystem, LocalFileSystem)

    def child(self, *names: str) -> Folder:
        """A folder below."""
        return Folder(self.filesystem, "/".join([self.path, *names]), join(self.url, *names))

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
        with store_errors("read", self.filesystem, f"{self.path}/{name}"):
            return self._read(name)

    def find(self, name: str) -> bytes | None:
        """A small file, whole, or None if there is none."""
        with store_errors("read", self.filesystem, f"{self.path}/{name}"):
            try:
                return self._read(name)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.path}/{name}", compression=None) as file:
            return file.read()

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """`write_atomically`."""
        write_atomically(self.filesystem, f"{self.path}/{name}", data)

    def open_output(self, name: str) -> AbstractContextManager[BinaryIO]:
        """`open_atomically`."""
        return open_atomically(self.filesystem, f"{self.path}/{name}")

    def list(self, *, recursive: bool = False) -> list[FileInfo]:
        """What lies in the folder; nothing if it does not exist."""
        with store_errors("read", self.filesystem, self.path):
            selector = FileSelector(self.path, allow_not_found=True, recursive=recursive)
            return self.filesystem.get_file_info(selector)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with store_errors("delete", self.filesystem, f"{self.path}/{name}"), suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def clear(self) -> None:
        """Delete the folder with all that lies in it, if it is there."""
        with store_errors("delete", self.filesystem, self.path):
            if self.filesystem.get_file_info(self.path).type == FileType.Directory:
                self.filesystem.delete_dir(self.path)


@contextmanager
def store_errors(doing: str, filesystem: FileSystem, path: str) -> Iterator[None]:
    """Raise what the file system or Arrow raises in the block as StoreError with path and reason."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        place = path if isinstance(filesystem, LocalFileSystem) else f"{filesystem.type_name}://{path}"
        raise StoreError(f"store: cannot {doing} {place}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an error says, on one line."""
    said = str(getattr(error, "strerror", None) or error)
    return " ".join(said.split()) or type(error).__name__
