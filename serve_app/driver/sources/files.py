"""The file behind a population: CSV, JSONL or Parquet, by URL.

Knows how to stream it. Does not know jobs, nor what columns mean (see `template.py`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast, get_args

import msgspec
import pyarrow.fs as pa_fs

from serve_app.errors import BadSettings, ServeAppError
from serve_app.spec import Format, JobSpec
from serve_app.storage.filesystem import join, reason, resolve

# Prefix of a file in the job's own folder.
JOB_FILE = "job:"
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# Bytes. No model reads a longer prompt, and a missing line end or quote must not take all memory.
LONGEST_LINE = 1 << 24
READ_BUFFER = 1 << 20


def fingerprint(spec: JobSpec) -> str:
    """Tells a source file from a later version: its size and time of change, or what its server says of it.

    "" for a request's rows, uploaded files (which cannot change) and generators. Raises BadSettings for a missing file.
    """
    if not spec.source or spec.source.startswith(JOB_FILE):
        return ""
    with reading(spec.source):
        filesystem, path = resolve(spec.source)
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
    url: str
    format: Format
    compression: str | None

    @classmethod
    def of(cls, spec: JobSpec, folder_url: str) -> SourceFile:
        url = spec.source
        if url.startswith(JOB_FILE):
            url = _in_folder(folder_url, url.removeprefix(JOB_FILE))
        suffixes = PurePosixPath(_shown(url)).suffixes
        compression = COMPRESSIONS.get(suffixes[-1].lower()) if suffixes else None
        ending = "".join(suffixes[-2:-1] if compression else suffixes[-1:]).lower()
        kind = spec.format or FORMATS.get(ending)
        if kind is None:
            known = ", ".join(get_args(Format))
            raise BadSettings(f"cannot tell from the name of {_shown(url)}: give one of {known}", field="format")
        if compression and kind == "parquet":
            raise BadSettings(
                f"{_shown(url)} is compressed around Parquet, which compresses inside: unpack it", field="source"
            )
        return cls(url, kind, compression)

    @property
    def name(self) -> str:
        return _shown(self.url)

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        with reading(self.url):
            filesystem, path = resolve(self.url)
            with filesystem.open_input_stream(path, compression=self.compression) as raw:
                # Python's own reader splits lines many times faster.
                yield io.BufferedReader(cast("io.RawIOBase", raw), READ_BUFFER)

    def check(self) -> None:
        """Raise now, as `stream` would, if the file is missing."""
        with self.stream():
            pass

    def lines(self) -> Iterator[bytes]:
        """See `bounded_lines`."""
        with self.stream() as file:
            yield from bounded_lines(file)


def _in_folder(folder_url: str, name: str) -> str:
    if name in ("", "..") or PurePosixPath(name).name != name:
        raise BadSettings(f"'{JOB_FILE}{name}' is no file of the job's folder", field="source")
    return join(folder_url, name)


def _shown(url: str) -> str:
    """Without the query, which may hold a signature."""
    return url.partition("?")[0] if "://" in url else url


@contextmanager
def reading(url: str) -> Iterator[None]:
    try:
        yield
    except ServeAppError as error:
        raise BadSettings(str(error), field="source") from error
    except Exception as error:  # each file system has its own
        # The error may repeat the URL.
        said = reason(error).replace(url, _shown(url))
        raise BadSettings(f"cannot read {_shown(url)}: {said}", field="source") from error


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, split at \\n only, without a byte order mark; "" stands for a line of more than LONGEST_LINE bytes."""
    line = file.readline(LONGEST_LINE).removeprefix(b"\xef\xbb\xbf")
    while line:
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield b""
        line = file.readline(LONGEST_LINE)
