"""The durable store: a folder a job, append-only segments and atomically replaced manifests.

    <root>/<job id>/job.json                         what was asked, written once
    <root>/<job id>/manifest.json                    the state
    <root>/<job id>/parts/0000/manifest.json         which segments of the part count
    <root>/<job id>/parts/0000/segments/….parquet    committed outcomes, a column a field

Knows jobs, their parts and outcomes. Does not know who runs them, nor how files become durable (see `filesystem.py`).

A segment counts once its part's manifest names it, and that is replaced after the segment is on disk. So a SIGKILL at
any instant loses no committed row, tears none, and leaves at most files that nobody reads. Each part has one writer at
a time: a lock holds off others on a local file system; everywhere each writer raises the manifest's epoch when it
begins, and a writer that finds another's there stops. (Between that look and the manifest's replacement lies one
request; a takeover in just that time is noticed by the new writer, which then stops instead.)
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, BinaryIO, TypedDict, TypeVar, Unpack
from uuid import uuid4

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.driver.store.idmap import IdMap
from serve_app.errors import BadSettings, JobConflict, JobNotFound, StoreError, TakenOver
from serve_app.schema import Outcome, Status
from serve_app.storage.filesystem import Folder, join, store_errors

T = TypeVar("T")

JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")
RESERVED = {"job.json", "manifest.json", "parts", "lock"}

# So many segments of one level become one of the next: manifests stay short and readers open few files.
FAN_OUT = 64
# A larger segment would hold up the commits for too long while it is merged, and save no reader anything.
MERGED_ROWS = 64 * 64 * 1024
# A reader has one row group in memory, some 10 MB of outcomes.
GROUP_ROWS = 16_384
# Whole responses can be large.
GROUP_BYTES = 64 << 20
# Outcomes made from a table at once.
BATCH_ROWS = 1024
# Manifests read at once: on an object store each takes a round trip.
READERS = 16

_FIELDS: list[pa.Field[Any]] = [
    pa.field("custom_id", pa.string(), nullable=False),
    pa.field("content_hash", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("value", pa.string()),  # JSON
    pa.field("error", pa.string()),
    pa.field("attempts", pa.int32(), nullable=False),
    pa.field("replica", pa.string()),
    pa.field("model", pa.string(), nullable=False),
    pa.field("engine_version", pa.string()),
    pa.field("simulated", pa.bool_(), nullable=False),
    pa.field("prompt_tokens", pa.int64(), nullable=False),
    pa.field("cached_tokens", pa.int64(), nullable=False),
    pa.field("completion_tokens", pa.int64(), nullable=False),
    pa.field("latency_ms", pa.float64(), nullable=False),
    pa.field("finished_at", pa.string(), nullable=False),
    pa.field("reused_from", pa.string()),
]
SCHEMA = pa.schema(_FIELDS)


class Manifest(TypedDict):
    """A job's state. `parts` are their [start, stop) rows, [] until the population was counted."""

    state: str
    message: str
    parts: list[list[int]]
    report: dict[str, Any]
    created_at: str


class Change(TypedDict, total=False):
    """Fields of a job's manifest that may change."""

    state: str
    message: str
    parts: list[list[int]]
    report: dict[str, Any]


class Segment(msgspec.Struct, frozen=True):
    """A Parquet file of a part. Level n holds the rows of FAN_OUT**n commits."""

    name: str
    rows: int
    level: int


class PartManifest(msgspec.Struct, frozen=True):
    """A part's segments in the order of commit, and who writes them."""

    epoch: int = 0
    writer: str = ""
    segments: tuple[Segment, ...] = ()
    report: dict[str, Any] = {}


class Store:
    """All jobs under one folder or URL. Raises BadSettings for one that cannot keep jobs."""

    def __init__(self, root_url: str) -> None:
        self._root = Folder.at(root_url)

    @property
    def folder(self) -> str:
        """Absolute path or URL."""
        return self._root.url

    def create(self, job_id: str, spec: dict[str, Any]) -> JobStore:
        """Write a new job down, as queued.

        Raises JobConflict if there is one, BadSettings for a malformed id, StoreError if it cannot be written.
        """
        job = self._job(job_id)
        if job.exists():
            raise JobConflict(f"job '{job_id}' exists already: give another id, or resume it")
        job.start(spec)
        return job

    def open(self, job_id: str) -> JobStore:
        """An existing job. Raises JobNotFound, BadSettings for a malformed id."""
        job = self._job(job_id)
        if not job.exists():
            raise JobNotFound(f"no job '{job_id}' in {self.folder}")
        return job

    def jobs(self) -> list[str]:
        """Ids of all jobs, newest first. Raises StoreError when the folder cannot be read."""
        names = [info.base_name for info in self._root.list()]
        ids = [name for name in names if JOB_ID.fullmatch(name)]
        with ThreadPoolExecutor(READERS) as threads:
            created = list(threads.map(lambda job_id: self._job(job_id).created_at(), ids))
        return [job_id for at, job_id in sorted(zip(created, ids, strict=True), reverse=True) if at]

    def delete(self, job_id: str) -> None:
        """Remove a job and all its files. Raises JobNotFound."""
        self.open(job_id).clear()

    def _job(self, job_id: str) -> JobStore:
        if not JOB_ID.fullmatch(job_id):
            raise BadSettings(f"job id '{job_id}': use up to 80 small letters, digits and dashes")
        return JobStore(job_id, self._root.child(job_id))


class JobStore:
    """One job's files. All methods raise StoreError."""

    def __init__(self, job_id: str, folder: Folder) -> None:
        self.job_id = job_id
        self._folder = folder

    @property
    def folder(self) -> str:
        """Absolute path or URL."""
        return self._folder.url

    def exists(self) -> bool:
        """Whether the job was written down, whole."""
        return _find(self._folder, Manifest) is not None

    def created_at(self) -> str:
        """ISO 8601, UTC; "" if there is no such job."""
        manifest = _find(self._folder, Manifest)
        return manifest["created_at"] if manifest else ""

    def start(self, spec: dict[str, Any]) -> None:
        """Write the job down."""
        self._folder.clear()  # what a deletion that was cut short has left must not become this job's
        self._folder.make()
        self._folder.write("job.json", _json(spec))
        created_at = datetime.now(UTC).isoformat(timespec="microseconds")
        self._replace({"state": "queued", "message": "", "parts": [], "report": {}, "created_at": created_at})

    def clear(self) -> None:
        """Delete the job. Its manifest goes first: half a job is none."""
        self._folder.delete("manifest.json")
        self._folder.clear()

    def spec(self) -> dict[str, Any]:
        """What was asked."""
        spec: dict[str, Any] = msgspec.json.decode(self._folder.read("job.json"))
        return spec

    def manifest(self) -> Manifest:
        """The job's state."""
        manifest = _find(self._folder, Manifest)
        if manifest is None:
            raise JobNotFound(f"no job '{self.job_id}' any more: {self.folder} has no manifest.json")
        return manifest

    def update(self, **changed: Unpack[Change]) -> None:
        """Replace fields of the manifest, all or none. For the one driver that holds the job."""
        self._replace({**self.manifest(), **changed})

    def _replace(self, manifest: Manifest) -> None:
        self._folder.write("manifest.json", _json(manifest))

    # --- outcomes ---

    def part(self, number: int, *, fan_out: int = FAN_OUT) -> OutcomeLog:
        """The part's log, which need not have begun."""
        return OutcomeLog(self._folder.child("parts", f"{number:04d}"), fan_out=fan_out)

    def parts(self) -> list[OutcomeLog]:
        """The logs that have begun, in the order of the parts."""
        names = [info.base_name for info in self._folder.child("parts").list()]
        return [self.part(number) for number in sorted(int(name) for name in names if name.isdecimal())]

    def tables(self, after: int = 0, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Committed rows but the first `after`: the first part's in the order of commit, then the next part's.

        So a job with several parts keeps an offset's meaning only once it has ended.
        """
        for log in self.parts():
            skipped = min(after, log.rows) if after else 0
            after -= skipped
            yield from log.tables(skipped, columns)

    def outcomes(self, after: int = 0, status: Status | None = None) -> Iterator[Outcome]:
        """The outcomes of `tables(after)`, or those with `status` of them."""
        for table in self.tables(after):
            if status is not None:
                table = table.filter(pc.equal(table["status"], pa.scalar(status)))
            yield from _outcomes(table)

    # --- files beside them ---

    def path(self, name: str) -> str:
        """Path or URL of a file of the job's own, such as its uploaded input. Raises BadSettings."""
        if not FILE_NAME.fullmatch(name) or name in RESERVED:
            taken = ", ".join(sorted(RESERVED))
            raise BadSettings(f"file name '{name}': use letters, digits, '.', '-' and '_', and none of {taken}")
        return self._folder.child(name).url

    def open_output(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file of the job's own, to be written; it is there once the block is left well. Raises BadSettings."""
        self.path(name)
        return self._folder.open_output(name)

    def put(self, name: str, data: bytes) -> None:
        """Write a file of the job's own. Raises BadSettings."""
        with self.open_output(name) as file:
            file.write(data)

    @contextmanager
    def lock(self, part: int | None = None) -> Iterator[None]:
        """Hold the job, or one part of it, for one run. Raises JobConflict while another process, or run, does.

        Only a local file system has locks; elsewhere it is the epoch alone that keeps a part's writers apart.
        """
        if not self._folder.local:
            yield
            return
        folder = self._folder if part is None else self._folder.child("parts", f"{part:04d}")
        folder.make()
        with store_errors("lock", folder.filesystem, folder.path):
            file = open(f"{folder.path}/lock", "a")  # noqa: SIM115  # closed below, past what the caller raises
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                what = f"job '{self.job_id}'" if part is None else f"part {part} of job '{self.job_id}'"
                raise JobConflict(f"{what} is being run by another driver") from error
            yield


class OutcomeLog:
    """One part's committed outcomes. All methods raise StoreError. Any number of readers, one writer at a time."""

    def __init__(self, folder: Folder, *, fan_out: int = FAN_OUT) -> None:
        self._folder = folder
        self._segments = folder.child("segments")
        self._fan_out = fan_out
        # The writer's: the manifest as it stands, files written, and those that the last compaction replaced.
        self._mine = PartManifest()
        self._writers: set[str] = set()  # all that this object has been
        self._acknowledged = 0  # rows that are known to be on disk
        self._written = 0
        self._replaced: list[str] = []
        # Why it may not write. After an error it is not known what is on disk: begin again.
        self._stopped: Exception | None = JobConflict(f"{folder.url}: begin() was not called")

    # --- reading ---

    @property
    def rows(self) -> int:
        """Committed rows."""
        return _rows(self._load())

    @property
    def report(self) -> dict[str, Any]:
        """The figures given with the last commit; {} before."""
        return self._load().report

    def tables(self, after: int = 0, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Committed rows but the first `after`, in the order of commit, at most some 10,000s at once.

        A table may later come together with its neighbours as a larger one, but is never cut.
        """
        while True:
            segments, start = self._load().segments, 0
            segment = Segment("", 0, 0)
            try:
                for segment in segments:
                    if after < start + segment.rows:
                        for table in self._read(segment, after - start, columns):
                            yield table
                            after += table.num_rows
                    start += segment.rows
                return
            except StoreError:
                if segment in self._load().segments:
                    raise
                # A compaction has replaced it meanwhile. Rows keep their places: go on from there.

    def outcomes(self, after: int = 0) -> Iterator[Outcome]:
        """The outcomes of `tables(after)`."""
        for table in self.tables(after):
            yield from _outcomes(table)

    def committed(self) -> IdMap:
        """First 16 bytes of SHA-256 of each committed custom_id -> first 64 bits of the row's content hash."""
        ids = IdMap()
        for table in self.tables(columns=["custom_id", "content_hash"]):
            names: list[Any] = table["custom_id"].cast(pa.binary()).to_pylist()
            contents: list[Any] = table["content_hash"].to_pylist()
            hashes = bytes.fromhex("".join([content[:16] for content in contents]))
            ids.add([hashlib.sha256(name).digest()[:16] for name in names], np.frombuffer(hashes, ">u8"))
        pa.default_memory_pool().release_unused()
        return ids

    def _load(self) -> PartManifest:
        return _find(self._folder, PartManifest) or PartManifest()

    def _read(self, segment: Segment, skip: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The segment's row groups, but the first `skip` rows."""
        filesystem, path = self._segments.filesystem, f"{self._segments.path}/{segment.name}"
        chosen = None if columns is None else list(columns)
        with (
            store_errors("read", filesystem, path),
            filesystem.open_input_file(path) as file,
            # pre_buffer: one request for all columns, not one for each.
            pq.ParquetFile(file, pre_buffer=True) as parquet,
        ):
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if skip < rows:
                    # One thread: the driver has other work, and Arrow's would each keep their buffers.
                    table = parquet.read_row_group(group, columns=chosen, use_threads=False)
                    yield table.slice(max(0, skip))
                skip -= rows

    # --- writing ---

    def begin(self) -> None:
        """Become the part's writer, the only one from now on, and remove what writers before have left unnamed.

        Raises JobConflict if another one begins at the same time.
        """
        self._segments.make()
        before = self._load()
        self._mine = msgspec.structs.replace(before, epoch=before.epoch + 1, writer=uuid4().hex[:8])
        self._writers.add(self._mine.writer)
        self._written, self._replaced = 0, []
        self._folder.write("manifest.json", _json(self._mine))
        # Listed after the manifest was replaced, looked at again before anything goes: what the writer before named
        # in its last moment is then known.
        infos = self._folder.list(recursive=True)
        self._check()
        keep = {segment.name for segment in self._mine.segments} | {"manifest.json", "lock"}
        for info in infos:
            if info.is_file and info.base_name not in keep:
                self._folder.delete(info.path.removeprefix(self._folder.path).lstrip("/"))
        self._stopped = None
        self._acknowledged = _rows(self._mine)

    def begin_again(self) -> bool:
        """After a StoreError of `append`: become the writer again. Whether that append is on disk after all.

        Raises JobConflict when another writer has begun since.
        """
        now = self._load()
        if now.writer not in self._writers:
            raise self._taken_over(now)
        added = _rows(now) > self._acknowledged
        self.begin()
        return added

    def append(self, outcomes: Sequence[Outcome], report: dict[str, Any]) -> None:
        """Add outcomes, durably: when this returns they are on disk and every later reader sees them.

        `report` holds the run's figures and replaces the ones before. Raises JobConflict when another writer has
        begun since; nothing is added then. After any error all later calls raise the same.
        """
        if self._stopped is not None:
            raise self._stopped
        try:
            segments, replaced = self._compact(list(self._mine.segments))
            if outcomes:
                segments.append(self._write(to_table(outcomes)))
            self._check()
            manifest = msgspec.structs.replace(self._mine, segments=tuple(segments), report=report)
            self._folder.write("manifest.json", _json(manifest))
        except Exception as error:
            self._stopped = error
            raise
        self._mine = manifest
        self._acknowledged = _rows(manifest)
        if replaced:
            # Not at once: a reader may be in the midst of them.
            for name in self._replaced:
                with suppress(StoreError):  # the next begin() gets it
                    self._segments.delete(name)
            self._replaced = replaced

    def _check(self) -> None:
        now = self._load()
        if (now.epoch, now.writer) != (self._mine.epoch, self._mine.writer):
            raise self._taken_over(now)

    def _taken_over(self, now: PartManifest) -> TakenOver:
        return TakenOver(
            f"{self._folder.url}: another driver took over (epoch {now.epoch}, this one's is {self._mine.epoch})"
        )

    def _name(self, level: int) -> str:
        # No other writer's name: not even one's that began with the same epoch.
        self._written += 1
        return f"{self._mine.epoch:04d}-{self._written:06d}-{self._mine.writer}.parquet"

    def _write(self, table: pa.Table) -> Segment:
        segment = Segment(self._name(0), table.num_rows, 0)
        data = pa.BufferOutputStream()
        pq.write_table(table, data, compression="zstd", row_group_size=table.num_rows)
        self._segments.write(segment.name, data.getvalue())
        return segment

    def _compact(self, segments: list[Segment]) -> tuple[list[Segment], list[str]]:
        """The segments to name from now on, and the names of those that they replace.

        A log-structured merge tree: levels fall from the oldest segments to the youngest, so those of one level are
        neighbours, and the oldest of them become one in their place.
        """
        replaced: list[str] = []
        level = 0
        while len(run := [s for s in segments if s.level == level][: self._fan_out]) == self._fan_out:
            if sum(segment.rows for segment in run) > MERGED_ROWS:
                break
            self._check()  # else the files may be gone, and the work is long
            first = segments.index(run[0])
            segments[first : first + len(run)] = [self._merge(run, level + 1)]
            replaced += [segment.name for segment in run]
            level += 1
        return segments, replaced

    def _merge(self, run: Sequence[Segment], level: int) -> Segment:
        merged = Segment(self._name(level), sum(segment.rows for segment in run), level)
        tables = (table for segment in run for table in self._read(segment, 0))
        with (
            self._segments.open_output(merged.name) as file,
            pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer,
        ):
            for group in _grouped(tables):
                writer.write_table(group, row_group_size=group.num_rows)
        return merged


def _rows(manifest: PartManifest) -> int:
    return sum(segment.rows for segment in manifest.segments)


def to_table(outcomes: Sequence[Outcome]) -> pa.Table:
    """A row an outcome, columns as SCHEMA has them.

    Lone surrogates, which no encoding has a place for, become U+FFFD; numbers in `value` that JSON does not have
    (infinities, NaN) become null.
    """
    columns = []
    for field in SCHEMA:
        values = list(map(attrgetter(field.name), outcomes))
        if field.name == "value":
            values = [None if value is None else _value(value) for value in values]
        try:
            column = pa.array(values, field.type)
        except UnicodeEncodeError:
            column = pa.array([_text(value) for value in values], field.type)
        columns.append(column)
    return pa.table(columns, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Outcome]:
    """Inverse of `to_table`."""
    columns = {name: table[name].to_pylist() for name in SCHEMA.names}
    columns["value"] = [None if value is None else _decode(value) for value in columns["value"]]
    return list(map(Outcome, *columns.values()))


def _outcomes(table: pa.Table) -> Iterator[Outcome]:
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield from from_table(pa.Table.from_batches([batch]))


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Neighbours together, up to GROUP_ROWS and GROUP_BYTES; none is cut: a row stays with those it was read with."""
    group: list[pa.Table] = []
    for table in tables:
        together = [*group, table]
        rows, size = sum(t.num_rows for t in together), sum(t.nbytes for t in together)
        if group and (rows > GROUP_ROWS or size > GROUP_BYTES):
            yield pa.concat_tables(group)
            group = []
        group.append(table)
    if group:
        yield pa.concat_tables(group)


_encode = msgspec.json.Encoder().encode
_decode: Callable[[str], dict[str, Any]] = msgspec.json.Decoder(dict[str, Any]).decode


def _find(folder: Folder, form: type[T]) -> T | None:
    """The folder's manifest, None if it has none."""
    data = folder.find("manifest.json")
    try:
        return None if data is None else msgspec.json.decode(data, type=form)
    except msgspec.MsgspecError as error:
        raise StoreError(f"store: cannot read {join(folder.url, 'manifest.json')}: {error}") from error


def _value(value: dict[str, Any]) -> bytes:
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_text(value))


def _text(value: Any) -> Any:
    """The value without lone surrogates in its strings."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return value


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
