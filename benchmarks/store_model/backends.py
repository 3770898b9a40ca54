"""The stores of the model: the project's own code for folders and buckets, each of whose requests is an actor's turn.

Underneath is a real folder, obstore's store in memory, or a real S3 server (moto), all with conditional writes.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import filelock
import obstore
import pyarrow as pa
from obstore.exceptions import GenericError
from obstore.store import MemoryStore, ObjectStore, S3Store
from pyarrow.fs import FileInfo, FileSystemHandler, FileType, PyFileSystem, S3FileSystem

from benchmarks.store_model.schedule import hooked, request
from serve_app import atomic
from serve_app.storage import bucket as buckets
from serve_app.storage import filesystem as files
from serve_app.storage.bucket import Bucket
from serve_app.storage.filesystem import Folder

# A writer that finds a lock held asks again so often.
LOCK_TRIES = 30


class Backend:
    """Context manager of `local`, `memory` or `s3`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack = ExitStack()
        self._store: ObjectStore | None = None
        self._folders = 0
        self._prefix = uuid4().hex[:8]  # all servers of a process (moto's) have the same buckets

    def __enter__(self) -> Backend:
        enter = self._stack.enter_context
        if self._name == "local":
            self._root = enter(tempfile.TemporaryDirectory())
            system = hooked(os, replace=_replace, unlink=_unlink, fsync=lambda _: None)
            for module in (files, atomic):
                enter(mock.patch.object(module, "os", system))
                enter(mock.patch.object(module, "open", _open, create=True))
            enter(mock.patch.object(files, "FileLock", _Lock))
        else:
            self._store = MemoryStore() if self._name == "memory" else enter(_s3())
            hooks = hooked(obstore, put=_put, get=_get, delete=_delete, open_writer=_Upload)
            enter(mock.patch.object(buckets, "obstore", hooks))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def folder(self) -> Folder:
        """A new one, which is empty."""
        self._folders += 1
        if self._store is None:
            path = f"{self._root}/{self._folders}"
            return Folder(PyFileSystem(_Disk()), path, path)
        path = f"bucket/{self._prefix}-{self._folders}"
        return Folder(PyFileSystem(_Objects(self._store)), path, f"s3://{path}", Bucket(self._store))


# --- buckets ---


@contextmanager
def _s3() -> Iterator[ObjectStore]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys: Any = {"access_key_id": "testing", "secret_access_key": "testing", "region": "us-east-1"}
        bucket = S3Store("bucket", endpoint=f"http://{host}:{port}", client_options={"allow_http": True}, **keys)
        S3FileSystem(
            access_key="testing",
            secret_key="testing",
            region="us-east-1",
            endpoint_override=f"{host}:{port}",
            scheme="http",
            allow_bucket_creation=True,
        ).create_dir("bucket")
        yield bucket
    finally:
        server.stop()


def _put(store: ObjectStore, key: str, data: Any, mode: Any = "overwrite", **_: Any) -> Any:
    kept = bytes(data)
    condition = "" if mode == "overwrite" else " if new" if mode == "create" else " if unchanged"
    what = f"puts {_short(key)}{condition}"
    return request(what, lambda: obstore.put(store, key, kept, mode=mode), write=True, network=True, error=GenericError)


def _get(store: ObjectStore, key: str) -> Any:
    return request(f"gets {_short(key)}", lambda: obstore.get(store, key), error=GenericError)


def _delete(store: ObjectStore, key: str) -> None:
    request(f"deletes {_short(key)}", lambda: obstore.delete(store, key), write=True, network=True, error=GenericError)


class _Upload:
    def __init__(self, store: ObjectStore, key: str, **_: Any) -> None:
        self._store, self._key = store, key
        self._data = io.BytesIO()

    def write(self, data: Any) -> None:
        self._data.write(data)

    def close(self) -> None:
        _put(self._store, self._key, self._data.getvalue())


_unused: Any = NotImplemented


class _Reading(FileSystemHandler):
    """What the log asks of an Arrow file system."""

    def get_type_name(self) -> str:
        return "model"

    def open_input_file(self, path: str) -> Any:
        return pa.BufferReader(request(f"reads {_short(path)}", lambda: self.content(path), error=OSError))

    def get_file_info_selector(self, selector: Any) -> list[FileInfo]:
        return request(f"lists {_short(selector.base_dir)}", lambda: self.inside(selector.base_dir), error=OSError)

    @abstractmethod
    def content(self, path: str) -> bytes:
        """The file's."""

    @abstractmethod
    def inside(self, path: str) -> list[FileInfo]:
        """The folder's files."""

    normalize_path = get_file_info = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _unused
    delete_file = move = copy_file = open_input_stream = open_output_stream = open_append_stream = _unused


class _Objects(_Reading):
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def content(self, path: str) -> bytes:
        return bytes(obstore.get(self._store, path.partition("/")[2]).bytes())

    def inside(self, path: str) -> list[FileInfo]:
        found = obstore.list(self._store, path.partition("/")[2]).collect()
        return [FileInfo(f"bucket/{meta['path']}", FileType.File, size=meta["size"]) for meta in found]


# --- a local folder ---


def _replace(source: str, target: str) -> None:
    request(f"renames to {_short(target)}", lambda: os.replace(source, target), write=True, error=OSError)


def _unlink(path: str) -> None:
    request(f"unlinks {_short(path)}", lambda: os.unlink(path), write=True, error=OSError)


def _open(path: str, mode: str, **how: Any) -> Any:
    return request(f"opens {_short(path)} {mode}", lambda: open(path, mode, **how), error=OSError)


class _Lock:
    """A file lock whose waiting is the schedule's."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path

    def __enter__(self) -> None:
        for _ in range(LOCK_TRIES):
            self._lock = filelock.FileLock(self._path, thread_local=False, blocking=False)
            try:
                request("locks", self._lock.acquire, error=OSError)
                return
            except filelock.Timeout:
                continue
        raise filelock.Timeout(self._path)

    def __exit__(self, *_: object) -> None:
        self._lock.release()  # by the system, where the process was killed


class _Disk(_Reading):
    def content(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def inside(self, path: str) -> list[FileInfo]:
        return [FileInfo(file.path, FileType.File) for file in os.scandir(path)] if os.path.isdir(path) else []


def _short(path: str) -> str:
    return "/".join(path.split("/")[-2:]) if "segments/" in path else path.rpartition("/")[2]
