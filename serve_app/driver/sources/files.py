"""Populations as they come: CSV, JSONL and Parquet files by URL, and generators that workloads install.

Knows how to read rows as a stream, whatever their number, from any row on. Does not know jobs, nor what a row's
columns mean (see `template.py`). A row that cannot be read is a `Row` with an `error`, never an exception: one bad
line is no reason to lose a population.
"""

from __future__ import annotations

import csv
import inspect
import io
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import accumulate, islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol, cast, get_args

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pa_parquet
import pydantic

from serve_app.driver.sources.requests import RequestRows
from serve_app.driver.sources.template import RowMaker, unreadable, unreadable_id
from serve_app.errors import BadSettings, ServeAppError
from serve_app.schema import Row
from serve_app.spec import Format, Generator, JobSpec
from serve_app.storage.filesystem import join, reason, resolve

# A source of this prefix is a file in the job's own folder.
JOB_FILE = "job:"
GENERATORS = "serve_app.generators"
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# Bytes. No model reads a longer prompt; without a bound one missing line end or quote would take all memory.
LONGEST_LINE = 1 << 24
TOO_LONG = f"the line is longer than {LONGEST_LINE} bytes"
READ_BUFFER = 1 << 20
# Rows decoded together from Parquet: few, since a row may be a long document.
BATCH_ROWS = 1024


class Source(Protocol):
    """A population. Row numbers begin with 0 and are the same in every pass."""

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows [start, stop), rendered, in their order. Raises BadSettings if the source cannot be read on."""

    def ids(self) -> Iterator[str]:
        """The custom_id of every row, in their order, without rendering them."""

    def count(self) -> int:
        """How many rows there are: by metadata for Parquet, by a pass over the others."""


def open_source(spec: JobSpec, *, folder_url: str) -> Source:
    """The population of a job whose folder is `folder_url`.

    Raises BadSettings naming the field if there is no such source, its format is unknown, it lacks a column that
    the job names, a template is none, or the generator refuses its arguments.
    """
    if spec.generator is not None:
        return Generated(spec.generator)
    maker = RowMaker(spec)
    file = _SourceFile.of(spec, folder_url)
    if spec.endpoint is not None:
        return _requests(file, spec.endpoint)
    match file.format:
        case "csv":
            return CsvRows(file, maker)
        case "jsonl":
            return JsonlRows(file, maker)
        case "parquet":
            return ParquetRows(file, maker)


def _requests(file: _SourceFile, endpoint: str) -> RequestRows:
    if file.format != "jsonl":
        raise BadSettings(f"format: requests are JSON lines, and {file.name} is {file.format}")
    file.check()
    return RequestRows(file.lines, endpoint)


def check_ids(source: Source) -> None:
    """Raise BadSettings naming the first custom_id that is given twice, and its rows (from 1).

    One pass that keeps 8 bytes a row; a second one only where two hashes are equal.
    """
    hashes = np.fromiter(map(hash, source.ids()), dtype=np.int64)
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    first: dict[str, int] = {}
    for number, custom_id in enumerate(source.ids(), 1):
        if hash(custom_id) in suspects and (before := first.setdefault(custom_id, number)) != number:
            raise BadSettings(
                f"custom_id '{custom_id}' is given twice, in rows {before} and {number}: "
                "make ids unique, or name another id_column"
            )


def fingerprint(spec: JobSpec) -> str:
    """What tells a source file from a later version: its size and time of change, or what its server says of it.

    "" for rows of a request, for uploaded files, which cannot change, and for generators. Raises BadSettings for a
    file that is not there.
    """
    if not spec.source or spec.source.startswith(JOB_FILE):
        return ""
    with _reading(spec.source):
        filesystem, path = resolve(spec.source)
        if isinstance(filesystem, pa_fs.PyFileSystem) and isinstance(filesystem.handler, pa_fs.FSSpecHandler):
            # pyarrow passes on size and time only; web servers have no time, but an ETag or Last-Modified.
            handler: Any = filesystem.handler
            said = {key: str(value) for key, value in handler.fs.info(path).items()}
            said.pop("url", None)  # where a redirect led, which may be signed anew each time
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
            raise BadSettings(f"rows[{number}]: {error}") from error
        file.write(line + b"\n")


# --- files ---


@dataclass(frozen=True)
class _SourceFile:
    url: str
    format: Format
    compression: str | None

    @classmethod
    def of(cls, spec: JobSpec, folder_url: str) -> _SourceFile:
        url = spec.source
        if url.startswith(JOB_FILE):
            url = _in_folder(folder_url, url.removeprefix(JOB_FILE))
        suffixes = PurePosixPath(_shown(url)).suffixes
        compression = COMPRESSIONS.get(suffixes[-1].lower()) if suffixes else None
        ending = "".join(suffixes[-2:-1] if compression else suffixes[-1:]).lower()
        kind = spec.format or FORMATS.get(ending)
        if kind is None:
            raise BadSettings(
                f"format: cannot tell from the name of {_shown(url)}: give one of {', '.join(get_args(Format))}"
            )
        if compression and kind == "parquet":
            raise BadSettings(f"source: {_shown(url)} is compressed around Parquet, which compresses inside: unpack it")
        return cls(url, kind, compression)

    @property
    def name(self) -> str:
        return _shown(self.url)

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        with _reading(self.url):
            filesystem, path = resolve(self.url)
            with filesystem.open_input_stream(path, compression=self.compression) as raw:
                # Python's own reader: it splits lines many times faster.
                yield io.BufferedReader(cast("io.RawIOBase", raw), READ_BUFFER)

    def check(self) -> None:
        """Say now that the file is not there, as `stream` would."""
        with self.stream():
            pass

    def lines(self) -> Iterator[bytes]:
        """See `_lines`."""
        with self.stream() as file:
            yield from _lines(file)


def _in_folder(folder_url: str, name: str) -> str:
    if name in ("", "..") or PurePosixPath(name).name != name:
        raise BadSettings(f"source: '{JOB_FILE}{name}' is no file of the job's folder")
    return join(folder_url, name)


def _shown(url: str) -> str:
    """For messages: a query may hold a signature."""
    return url.partition("?")[0] if "://" in url else url


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        yield
    except ServeAppError as error:
        raise BadSettings(f"source: {error}") from error
    except Exception as error:  # each file system has its own
        # What file systems say may repeat the URL.
        said = reason(error).replace(url, _shown(url))
        raise BadSettings(f"source: cannot read {_shown(url)}: {said}") from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, split at \\n only, without a byte order mark; "" stands for one of more than LONGEST_LINE bytes."""
    line = file.readline(LONGEST_LINE).removeprefix(b"\xef\xbb\xbf")
    while line:
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield b""
        line = file.readline(LONGEST_LINE)


class _Streamed(ABC):
    """A file that can be read from its beginning only: rows before `start` are passed over, not decoded."""

    def __init__(self, file: _SourceFile, maker: RowMaker) -> None:
        self._file = file
        self._maker = maker

    @abstractmethod
    def _records(self) -> Iterator[Any]:
        """One a row, not decoded yet."""

    @abstractmethod
    def _values(self, record: Any) -> dict[str, Any] | str:
        """The record's columns, or why it cannot be read."""

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        for number, record in enumerate(islice(self._records(), start, stop), start):
            values = self._values(record)
            yield unreadable(number, values) if isinstance(values, str) else self._maker.row(number, values)

    def ids(self) -> Iterator[str]:
        for number, record in enumerate(self._records()):
            values = self._values(record)
            yield unreadable_id(number) if isinstance(values, str) else self._maker.custom_id(number, values)

    def count(self) -> int:
        return sum(1 for _ in self._records())


class CsvRows(_Streamed):
    """RFC 4180 with a header line; every value is text, UTF-8. Blank lines are no rows."""

    def __init__(self, file: _SourceFile, maker: RowMaker) -> None:
        super().__init__(file, maker)
        header = next(self._parsed(), None)
        if header is None:
            raise BadSettings(f"source: {file.name} is empty: a CSV file begins with a line of column names")
        if isinstance(problem := header if isinstance(header, str) else _not_utf8(header), str):
            raise BadSettings(f"source: the first line of {file.name} has no column names: {problem}")
        needed = maker.check(header, file.name)
        if twice := {column for column in needed if needed.count(column) > 1}:
            raise BadSettings(f"source: {file.name} has more than one column '{min(twice)}': rename one")
        self._width = len(header)
        self._columns = [(header.index(column), column) for column in needed]

    def _parsed(self) -> Iterator[list[str] | str]:
        # Of the whole process, and by default too small for documents.
        csv.field_size_limit(LONGEST_LINE)
        with self._file.stream() as file:
            # `map`, since it goes on after its function raised.
            reader = csv.reader(map(_csv_line, _lines(file)), strict=True)
            while True:
                try:
                    if record := next(reader):
                        yield record
                except StopIteration:
                    return
                except csv.Error as error:
                    yield str(error)

    def _records(self) -> Iterator[list[str] | str]:
        return islice(self._parsed(), 1, None)

    def _values(self, record: list[str] | str) -> dict[str, Any] | str:
        if isinstance(record, str):
            return record
        if len(record) != self._width:
            return f"{len(record)} fields, where the header has {self._width}"
        return _not_utf8(record) or {column: record[i] for i, column in self._columns}


def _csv_line(line: bytes) -> str:
    if not line:
        raise csv.Error(TOO_LONG)
    # Bytes that are no text stay recognisable, so that only their own row is refused.
    return line.decode("utf-8", "surrogateescape")


def _not_utf8(record: list[str]) -> str | None:
    try:
        "".join(record).encode()
    except UnicodeEncodeError:
        return "the line is not UTF-8"
    return None


class JsonlRows(_Streamed):
    """A JSON object a line, UTF-8. Blank lines are no rows. What columns a row has, only the row knows."""

    def __init__(self, file: _SourceFile, maker: RowMaker) -> None:
        super().__init__(file, maker)
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode
        file.check()

    def _records(self) -> Iterator[bytes]:
        with self._file.stream() as file:
            for line in _lines(file):
                if not line.isspace():
                    yield line

    def _values(self, record: bytes) -> dict[str, Any] | str:
        if not record:
            return TOO_LONG
        try:
            return self._decode(record)
        except (ValueError, RecursionError) as error:
            return f"the line is no JSON object: {error}"


class ParquetRows:
    """Reads only the columns that the job needs, and no row group before `start`."""

    def __init__(self, file: _SourceFile, maker: RowMaker) -> None:
        self._file = file
        self._maker = maker
        with self._open() as parquet:
            metadata = parquet.metadata
            self._columns = maker.check(parquet.schema_arrow.names, file.name)
            sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            # The number of each row group's first row, and of all rows.
            self._begins = list(accumulate(sizes, initial=0))

    @contextmanager
    def _open(self) -> Iterator[pa_parquet.ParquetFile]:
        with _reading(self._file.url):
            filesystem, path = resolve(self._file.url)
            # Pages as they are needed: the default would hold all row groups in memory.
            with pa_parquet.ParquetFile(
                path, filesystem=filesystem, pre_buffer=False, buffer_size=READ_BUFFER
            ) as parquet:
                yield parquet

    def _values(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, the columns' values) of rows [start, stop)."""
        stop = self.count() if stop is None else min(stop, self.count())
        if start >= stop:
            return
        first, last = bisect_right(self._begins, start) - 1, bisect_left(self._begins, stop)
        number = self._begins[first]
        with self._open() as parquet:
            groups = list(range(first, last))
            # Without threads: it takes less of the processor, and a driver shares it.
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(columns), use_threads=False):
                skip, number = max(0, start - number), number + batch.num_rows
                wanted = batch.slice(skip, batch.num_rows - skip - max(0, number - stop))
                yield from enumerate(_to_rows(wanted), number - batch.num_rows + skip)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        return (self._maker.row(number, values) for number, values in self._values(self._columns, start, stop))

    def ids(self) -> Iterator[str]:
        columns = [column for column in self._columns if column == self._maker.id_column]
        return (self._maker.custom_id(number, values) for number, values in self._values(columns))

    def count(self) -> int:
        return self._begins[-1]


def _to_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # as bytes instead: `template.as_text` refuses those of the bad row only
        text = (pa.string(), pa.large_string())
        fields = [field.with_type(pa.binary()) if field.type in text else field for field in batch.schema]
        return batch.cast(pa.schema(fields)).to_pylist()


# --- generators ---


class Generated:
    """Rows made by an entry point of the group `serve_app.generators`: a callable that gives an iterable of `Row`s.

    It gets the job's arguments by name, checked against its annotations. If it has a parameter `start`, it begins
    with that row itself; if not, rows before are made and passed over. If what it gives has a length, rows are not
    made only to be counted.
    """

    def __init__(self, asked: Generator) -> None:
        installed = {point.name: point for point in entry_points(group=GENERATORS)}
        if asked.name not in installed:
            raise BadSettings(
                f"generator.name: '{asked.name}' is not installed here; these are: {', '.join(installed) or 'none'}"
            )
        try:
            make = installed[asked.name].load()
            self._takes_start = "start" in inspect.signature(make).parameters
            self._make: Callable[..., Iterable[Row]] = pydantic.validate_call(make)
        except Exception as error:  # whatever its import raises
            raise BadSettings(f"generator.name: '{asked.name}' cannot be loaded: {error}") from error
        if self._takes_start and "start" in asked.arguments:
            raise BadSettings("generator.arguments: 'start' is not for jobs to give")
        self._arguments = asked.arguments
        try:
            next(self.rows(), None)  # what the generator refuses is said now
        except pydantic.ValidationError as error:
            problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise BadSettings(f"generator.arguments: {'; '.join(problems)}") from error
        except BadSettings as error:
            raise BadSettings(f"generator.arguments: {error}") from error

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        if self._takes_start:
            made = self._make(**self._arguments, start=start)
            return islice(made, None if stop is None else max(0, stop - start))
        return islice(self._make(**self._arguments), start, stop)

    def ids(self) -> Iterator[str]:
        return (row.custom_id for row in self.rows())

    def count(self) -> int:
        made = self._make(**self._arguments)
        return len(made) if isinstance(made, Sized) else sum(1 for _ in made)
