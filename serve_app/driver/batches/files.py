"""The files of OpenAI's `/v1/files`, kept beside the jobs in their store.

    <store>/_files/<file id>          the content
    <store>/_files/<file id>.json     its description; a file counts once this is there

Knows contents, names, purposes and expiry. Does not know batches or HTTP (see `routes.py`). A list is in the order in
which contents were written whole, which the folder tells, so that a page reads only its own files. No job's name has
a `_`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import BinaryIO, Literal

import msgspec

from serve_app.errors import FileChanged, NoSuchFile, StoreError
from serve_app.storage.filesystem import Folder, store_errors

logger = logging.getLogger(__name__)

FOLDER = "_files"
FILE_ID = re.compile(r"file-[0-9a-f]{24}")
# As at OpenAI: inputs of batches expire, other files stay until deleted.
DEFAULT_EXPIRES_AFTER_S = {"batch": 30 * 86_400}
BLOCK_BYTES = 1 << 20
# Descriptions read at once: on an object store each takes a round trip.
READERS = 16
PAGE = 256
# After this long, content without a description is an upload that was cut short.
ORPHAN_S = 86_400.0

Order = Literal["asc", "desc"]


class StoredFile(msgspec.Struct, frozen=True):
    """OpenAI's file object. Times are Unix times in seconds."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileStore:
    """All methods block, and raise StoreError; `now` gives the Unix time in seconds."""

    def __init__(self, store_url: str, *, now: Callable[[], float] = time.time) -> None:
        self._folder = Folder.at(store_url).child(FOLDER)
        self._now = now

    @property
    def folder(self) -> str:
        """Absolute path or URL."""
        return self._folder.url

    def url(self, file_id: str) -> str:
        """Path or URL of the file's content."""
        return self._folder.child(_checked(file_id)).url

    def add(self, file: BinaryIO, filename: str, purpose: str, *, expires_after_s: int | None = None) -> StoredFile:
        """Store the rest of `file`, block by block."""
        file_id = new_file_id()
        with self.create(file_id, filename, purpose, expires_after_s=expires_after_s) as output:
            shutil.copyfileobj(file, output, BLOCK_BYTES)
        return self.get(file_id)

    @contextmanager
    def create(
        self, file_id: str, filename: str, purpose: str, *, expires_after_s: int | None = None
    ) -> Iterator[BinaryIO]:
        """A new file to be written; it appears, whole, when the block ends well, and replaces one of that id."""
        self._folder.make()
        with self._folder.open_output(_checked(file_id)) as output:
            yield output
        created_at = int(self._now())
        lasts_s = DEFAULT_EXPIRES_AFTER_S.get(purpose) if expires_after_s is None else expires_after_s
        expires_at = None if lasts_s is None else created_at + lasts_s
        stored = StoredFile(file_id, self._size(file_id), created_at, filename, purpose, expires_at)
        self._folder.write(_description(file_id), msgspec.json.encode(stored))

    def _size(self, file_id: str) -> int:
        filesystem, path = self._folder.filesystem, f"{self._folder.path}/{file_id}"
        with store_errors("read", filesystem, path):
            return int(filesystem.get_file_info(path).size)

    def get(self, file_id: str) -> StoredFile:
        """The file's description. Raises NoSuchFile, also once it has expired."""
        stored = self._find(file_id) if FILE_ID.fullmatch(file_id) else None
        if stored is None:
            raise NoSuchFile(f"no file '{file_id[:80]}': upload it first, or look at the list")
        return stored

    def _find(self, file_id: str) -> StoredFile | None:
        stored = self._described(file_id)
        return None if stored is None or self._expired(stored) else stored

    def _described(self, file_id: str) -> StoredFile | None:
        data = self._folder.find(_description(file_id))
        try:
            return None if data is None else _decode(data)
        except msgspec.MsgspecError as error:
            raise StoreError(f"store: cannot read {self.folder}/{_description(file_id)}: {error}") from error

    def _expired(self, stored: StoredFile) -> bool:
        return stored.expires_at is not None and stored.expires_at <= self._now()

    def page(
        self, *, after: str | None = None, limit: int = 10_000, order: Order = "desc", purpose: str | None = None
    ) -> tuple[list[StoredFile], bool]:
        """Up to `limit` files by creation, those after `after`, and whether there are more."""
        written = self._written()
        ids = sorted(written, key=lambda file_id: (written[file_id], file_id), reverse=order == "desc")
        if after is not None:
            last = (written.get(after, _stamped(after)), after)
            ids = [i for i in ids if ((written[i], i) < last if order == "desc" else (written[i], i) > last)]
        found: list[StoredFile] = []
        with ThreadPoolExecutor(READERS) as threads:
            for page in _pages(ids, min(PAGE, limit + 1)):
                read = threads.map(self._find, page)
                found += [one for one in read if one is not None and purpose in (None, one.purpose)]
                if len(found) > limit:
                    return found[:limit], True
        return found, False

    def _written(self) -> dict[str, int]:
        """When each file's content was written whole, in Unix nanoseconds. An id tells only when that began, and a
        batch's output has its batch's time."""
        found = {info.base_name: info for info in self._folder.list()}
        return {i: (found[i].mtime_ns if i in found else None) or _stamped(i) for i in _described_ids(found)}

    def content(self, file_id: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The file's bytes [start, stop), in blocks. Raises NoSuchFile at once."""
        size = self.get(file_id).bytes
        return self._blocks(file_id, start, size if stop is None else stop)

    def _blocks(self, file_id: str, start: int, stop: int) -> Iterator[bytes]:
        filesystem, path = self._folder.filesystem, f"{self._folder.path}/{file_id}"
        with store_errors("read", filesystem, path), filesystem.open_input_file(path) as file:
            file.seek(start)
            while block := file.read(min(BLOCK_BYTES, stop - file.tell())):
                yield block

    def keep_until(self, file_id: str, at: int) -> None:
        """Have the file expire at `at` (Unix seconds) or later. Raises NoSuchFile."""
        while True:
            stored, seen = self.get(file_id), self._folder.load(_description(file_id))
            if seen is None or stored.expires_at is None or stored.expires_at >= at:
                return
            stored = msgspec.structs.replace(_decode(seen[0]), expires_at=at)
            with suppress(FileChanged):  # another batch keeps it too, or it was deleted
                self._folder.replace(_description(file_id), msgspec.json.encode(stored), seen[1])
                return

    def delete(self, file_id: str) -> None:
        """Remove the file. Raises NoSuchFile."""
        self.get(file_id)
        self._remove(file_id)

    def _remove(self, file_id: str) -> None:
        # The description first: half a file is none.
        self._folder.delete(_description(file_id))
        self._folder.delete(file_id)

    def sweep(self) -> int:
        """Remove expired files and the rest of interrupted uploads; returns how many."""
        listed = self._folder.list()
        described = set(_described_ids(info.base_name for info in listed))
        gone = 0
        for info in listed:
            name = info.base_name
            age_s = self._now() - info.mtime_ns / 1e9 if info.mtime_ns else 0.0
            if info.is_file and name.removesuffix(".json") not in described and age_s > ORPHAN_S:
                self._folder.delete(name)
                gone += 1
        for file_id in described:
            stored = self._described(file_id)
            if stored is not None and self._expired(stored):
                self._remove(file_id)
                gone += 1
        return gone


def new_file_id() -> str:
    """An id that sorts after all before it."""
    return f"file-{stamp()}"


def output_file_id(batch_id: str, kind: str) -> str:
    """The id of a batch's output or error file, always the same, so that writing it again leaves one."""
    own = batch_id.removeprefix("batch_")
    return f"file-{own[:16]}{hashlib.sha256(f'{kind}/{own}'.encode()).hexdigest()[:8]}"


def stamp() -> str:
    """24 hex digits: the time in nanoseconds, then random ones."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


def _stamped(file_id: str) -> int:
    """The time in an id, in Unix nanoseconds; 0 for what is none."""
    return int(file_id[5:21], 16) if _is_id(file_id) else 0


def _is_id(name: str) -> bool:
    return FILE_ID.fullmatch(name) is not None


def _checked(file_id: str) -> str:
    if not _is_id(file_id):
        raise NoSuchFile(f"no file '{file_id[:80]}': ids are 'file-' and 24 hex digits")
    return file_id


def _description(file_id: str) -> str:
    return f"{file_id}.json"


def _described_ids(names: Iterable[str]) -> list[str]:
    """Ids of the files whose description is among the names."""
    return [name.removesuffix(".json") for name in names if name.endswith(".json") and _is_id(name[:-5])]


def _pages(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


_decode = msgspec.json.Decoder(StoredFile).decode
