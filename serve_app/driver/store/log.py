"""The committed outcomes of one part: append-only segments, merged as they grow many."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.driver.store.idmap import KEY_BYTES, IdMap
from serve_app.driver.store.manifest import MANIFEST, PartManifest, Segment, load_file, replace_file, rows_of
from serve_app.driver.store.table import GROUP_BYTES, GROUP_ROWS, SCHEMA, grouped, read_outcomes, rows_within, to_table
from serve_app.errors import FileChanged, JobConflict, StoreError, TakenOver
from serve_app.schema import Outcome
from serve_app.storage.filesystem import Folder, Version, store_errors

# So many segments of one level become one of the next: manifests stay short and readers open few files.
FAN_OUT = 64
# A larger segment would hold up the commits for too long while it is merged, and save no reader anything.
MERGED_ROWS = 64 * 64 * 1024
# How often a writer that begins may find that the one before has committed since it looked.
TRIES = 100
# A segment's epoch, also in the name under which a disk holds it until it is whole.
EPOCH = re.compile(r"\.?(\d+)-")


def id_keys(custom_ids: Iterable[str | bytes]) -> list[bytes]:
    """Their keys in `OutcomeLog.committed`: the first 16 bytes of SHA-256 of each in UTF-8."""
    encoded = (one if isinstance(one, bytes) else one.encode() for one in custom_ids)
    return [hashlib.sha256(one).digest()[:KEY_BYTES] for one in encoded]


class OutcomeLog:
    """One part's committed outcomes. All methods raise StoreError. Any number of readers, one writer at a time."""

    def __init__(self, folder: Folder, *, fan_out: int = FAN_OUT) -> None:
        self._folder = folder
        self._segments = folder.child("segments")
        self._fan_out = fan_out
        # The writer's: the manifest as it stands and its version, files written, and those that the last compaction
        # replaced.
        self._mine = PartManifest()
        self._version: Version | None = None
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
        return rows_of(self._load())

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
            yield from read_outcomes(table)

    def committed(self) -> IdMap:
        """`id_keys` of each committed custom_id -> first 64 bits of the row's content hash."""
        ids = IdMap()
        for table in self.tables(columns=["custom_id", "content_hash"]):
            names: list[Any] = table["custom_id"].cast(pa.binary()).to_pylist()
            contents: list[Any] = table["content_hash"].to_pylist()
            hashes = bytes.fromhex("".join([content[:16] for content in contents]))
            ids.add(id_keys(names), np.frombuffer(hashes, ">u8"))
        pa.default_memory_pool().release_unused()
        return ids

    def _load(self) -> PartManifest:
        return self._find()[0]

    def _find(self) -> tuple[PartManifest, Version | None]:
        """The manifest and its version. Raises StoreError if it is lost: segments without one are no empty part."""
        found = load_file(self._folder, PartManifest)
        if found is None and (names := [info.base_name for info in self._segments.list() if info.is_file]):
            found = load_file(self._folder, PartManifest)  # a writer may have begun meanwhile
            if found is None and any(name.endswith(".parquet") for name in names):
                raise StoreError(
                    f"store: {self._folder.url} has {len(names)} segments and no {MANIFEST} that names them: bring it "
                    "back from a copy of the store, or delete the job"
                )
        return found or (PartManifest(), None)

    def _read(self, segment: Segment, skip: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The segment's row groups, but the first `skip` rows."""
        filesystem, path = self._segments.filesystem, f"{self._segments.path}/{segment.name}"
        chosen = None if columns is None else list(columns)
        with store_errors("read", filesystem, path), filesystem.open_input_file(path) as file:
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                if skip < rows:
                    # pre_buffer: one request for all columns, not one for each. A reader keeps all that it has
                    # buffered, so each group has its own.
                    with pq.ParquetFile(file, metadata=metadata, pre_buffer=True) as parquet:
                        # One thread: the driver has other work, and Arrow's would each keep their buffers.
                        table = parquet.read_row_group(group, columns=chosen, use_threads=False)
                    yield table.slice(max(0, skip))
                skip -= rows

    # --- writing ---

    def begin(self) -> None:
        """Become the part's writer, the only one from now on, and remove what writers before have left unnamed.

        Raises JobConflict if others begin all the time.
        """
        self._begin(lambda before: None)

    def begin_again(self) -> bool:
        """After a StoreError of `append`: become the writer again. Whether that append is on disk after all.

        Raises JobConflict when another writer has begun since.
        """
        acknowledged = self._acknowledged
        self._begin(self._check_own)
        return self._acknowledged > acknowledged

    def _begin(self, check: Callable[[PartManifest], None]) -> None:
        self._segments.make()
        for _ in range(TRIES):
            before, version = self._find()
            check(before)
            mine = msgspec.structs.replace(before, epoch=before.epoch + 1, writer=uuid4().hex[:8])
            self._writers.add(mine.writer)
            try:
                self._version = replace_file(self._folder, mine, version)
                break
            except FileChanged:  # by a commit, or by another one that begins
                continue
        else:
            raise JobConflict(f"{self._folder.url}: other drivers begin or commit all the time")
        self._mine, self._acknowledged = mine, rows_of(mine)
        self._written, self._replaced = 0, []
        self._stopped = None
        self._sweep()

    def _sweep(self) -> None:
        """Delete what no manifest names and none will: no writer of an earlier epoch can replace it any more."""
        named = {segment.name for segment in self._mine.segments}
        with suppress(StoreError):  # nobody reads them, and the next begin() gets them
            for info in self._segments.list():
                epoch = EPOCH.match(info.base_name)
                if epoch and int(epoch[1]) < self._mine.epoch and info.base_name not in named:
                    self._segments.delete(info.base_name)

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
            manifest = msgspec.structs.replace(self._mine, segments=tuple(segments), report=report)
            version = replace_file(self._folder, manifest, self._version)
        except FileChanged as error:
            self._stopped = error
            self._stopped = self._taken_over(self._load())
            raise self._stopped from error
        except Exception as error:
            self._stopped = error
            raise
        self._mine, self._version = manifest, version
        self._acknowledged = rows_of(manifest)
        if replaced:
            # Not at once: a reader may be in the midst of them.
            for name in self._replaced:
                with suppress(StoreError):  # the next begin() gets it
                    self._segments.delete(name)
            self._replaced = replaced

    def _check_own(self, now: PartManifest) -> None:
        if now.writer not in self._writers:
            raise self._taken_over(now)

    def _taken_over(self, now: PartManifest) -> TakenOver:
        if not now.epoch:
            return TakenOver(f"{self._folder.url}: the job was deleted while it ran")
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
        rows = rows_within(table, GROUP_ROWS, GROUP_BYTES)
        pq.write_table(table, data, compression="zstd", row_group_size=rows)
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
            self._check_own(self._load())  # else the files may be gone, and the work is long
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
            for group in grouped(tables):
                writer.write_table(group, row_group_size=group.num_rows)
        return merged
