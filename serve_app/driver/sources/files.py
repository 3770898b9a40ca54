"""The file behind a population: CSV, JSONL or Parquet, by URL.

Knows how to stream it. Does not know jobs, nor what columns mean (see `template.py`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast, get_args

import msgspec
import pyarrow.fs as pa_fs

from serve_app.addresses import PUBLIC, Reach
from serve_app.errors import BadSettings, ServeAppError
from serve_app.spec import Format, JobSpec
from serve_app.storage.filesystem import join, reason, resolve, shown
from serve_app.storage.reachable import check_reachable
from serve_app.tables.lines import bounded_lines
from serve_app.tables.table import DELIMITED, WORKBOOKS

# Prefix of a file in the job's own folder.
JOB_FILE = "job:"
FORMATS: dict[str, Format] = {
    **dict.fromkeys(DELIMITED, "csv"),
    **dict.fromkeys(WORKBOOKS, "xlsx"),
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# Before the name that an uploaded file had, in the job's folder.
UPLOADED = "input-"
READ_BUFFER = 1 << 20
MOST_WORKBOOK = 256 << 20
# Of a URL in a text: it may be signed.
QUERY = re.compile(r"(?<=[^\s'\"?])\?[^\s'\"<>]*(?:[=&%])[^\s'\"<>]*")


def fingerprint(spec: JobSpec, reach: Reach = PUBLIC) -> str:
    """Tells a source file from a later version: its size and time of change, or what its server says of it.

    "" for a request's rows, uploaded files (which cannot change) and generators. Raises BadSettings for a missing file.
    """
    if not spec.source or spec.source.startswith(JOB_FILE):
        return ""
    with reading(spec.source):
        filesystem, path = located(spec.source, reach)
        if isinstance(filesystem, pa_fs.PyFileSystem) and isinstance(filesystem.handler, pa_fs.FSSpecHandler):
            # pyarrow has only size and time; web servers give an ETag or Last-Modified instead.
            handler: Any = filesystem.handler
            said = {key: str(value) for key, value in handler.fs.info(path).items()}
            said.pop("url", None)  # a redirect's target, which may be signed anew each time
            return msgspec.json.encode(said, order="sorted").decode()
        info = filesystem.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError("no such file")
        return f"size {info.size}, changed at {info.mtime_ns} ns"


def write_rows(rows: Iterable[Mapping[str, Any]], file: BinaryIO) -> None:
    """Write the rows of a request as JSONL. Raises BadSettings naming a row that JSON cannot hold."""
    encode = msgspec.json.Encoder().encode
    for number, row in enumerate(rows):
        try:
            line = encode(row)
        except (TypeError, ValueError) as error:  # ValueError: half a surrogate pair is no text
            raise BadSettings(str(error), field=f"rows[{number}]") from error
        file.write(line + b"\n")


@dataclass(frozen=True)
class SourceFile:
    """`name` is what its user calls it, for messages."""

    url: str
    name: str
    format: Format
    compression: str | None
    reach: Reach = PUBLIC

    @classmethod
    def of(cls, spec: JobSpec, folder_url: str, reach: Reach = PUBLIC) -> SourceFile:
        url, name = spec.source, shown(spec.source)
        if url.startswith(JOB_FILE):
            name = url.removeprefix(JOB_FILE)
            url, name = _in_folder(folder_url, name), name.removeprefix(UPLOADED)
        suffixes = PurePosixPath(name).suffixes
        compression = COMPRESSIONS.get(suffixes[-1].lower()) if suffixes else None
        ending = "".join(suffixes[-2:-1] if compression else suffixes[-1:]).lower()
        kind = spec.format or FORMATS.get(ending)
        if kind is None:
            known = ", ".join(get_args(Format))
            raise BadSettings(f"cannot tell from the name of {name}: give one of {known}", field="format")
        if compression and kind in ("parquet", "xlsx"):
            raise BadSettings(f"{name} is compressed around a format that compresses inside: unpack it", field="source")
        return cls(url, name, kind, compression, reach)

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        with reading(self.url, self.name):
            filesystem, path = located(self.url, self.reach)
            with filesystem.open_input_stream(path, compression=self.compression) as raw:
                # Python's own reader splits lines many times faster.
                yield io.BufferedReader(cast("io.RawIOBase", raw), READ_BUFFER)

    def content(self) -> bytes:
        """All of a workbook, which must fit into memory. Raises BadSettings for more than MOST_WORKBOOK bytes."""
        with self.stream() as file:
            data = file.read(MOST_WORKBOOK + 1)
        if len(data) > MOST_WORKBOOK:
            size = f"{self.name} is larger than the {MOST_WORKBOOK >> 20} MiB of a workbook"
            raise BadSettings(f"{size}: save it as CSV UTF-8 or Parquet", field="source")
        return data

    def check(self) -> None:
        """Raise now, as `stream` would, if the file is missing."""
        with self.stream():
            pass

    def lines(self) -> Iterator[bytes]:
        """See `tables.lines.bounded_lines`."""
        with self.stream() as file:
            yield from bounded_lines(file)


def located(url: str, reach: Reach) -> tuple[pa_fs.FileSystem, str]:
    """`resolve` for a source. Raises OSError too, where no server answers."""
    check_reachable(url)
    return resolve(url, reach)


def _in_folder(folder_url: str, name: str) -> str:
    if name in ("", "..") or PurePosixPath(name).name != name:
        raise BadSettings(f"'{JOB_FILE}{name}' is no file of the job's folder", field="source")
    return join(folder_url, name)


@contextmanager
def reading(url: str, name: str = "") -> Iterator[None]:
    """Errors of reading that URL, `name` for its user, as BadSettings."""
    known = name or shown(url)
    try:
        yield
    except ServeAppError as error:
        raise BadSettings(str(error), field="source") from error
    except Exception as error:  # each file system has its own
        # What happened first says most: fsspec has one error for all. It may repeat the URL, or one that it led to.
        while isinstance(error.__cause__, Exception):
            error = error.__cause__
        said = QUERY.sub("", reason(error).replace(url, known))
        raise BadSettings(f"cannot read {known}: {said}", field="source") from error
