"""The committed outcomes of one part: append-only segments, merged as they grow many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.driver.store.idmap import IdMap
from serve_app.driver.store.manifest import PartManifest, Segment, find_file, rows_of, to_json
from serve_app.driver.store.table import SCHEMA, grouped, read_outcomes, to_table
from serve_app.errors import JobConflict, StoreError, TakenOver
from serve_app.schema import Outcome
from serve_app.storage.filesystem import Folder, store_errors

# So many segments of one level become one of the next: manifests stay short and readers open few files.
FAN_OUT = 64
# A larger segment would hold up the commits for too long while it is merged, and save no reader anything.
MERGED_ROWS = 64 * 64 * 1024


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
        return find_file(self._folder, PartManifest) or PartManifest()

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
        self._folder.write("manifest.json", to_json(self._mine))
        # Listed after the manifest was replaced, looked at again before anything goes: what the writer before named
        # in its last moment is then known.
        infos = self._folder.list(recursive=True)
        self._check()
        keep = {segment.name for segment in self._mine.segments} | {"manifest.json", "lock"}
        for info in infos:
            if info.is_file and info.base_name not in keep:
                self._folder.delete(info.path.removeprefix(self._folder.path).lstrip("/"))
        self._stopped = None
        self._acknowledged = rows_of(self._mine)

    def begin_again(self) -> bool:
        """After a StoreError of `append`: become the writer again. Whether that append is on disk after all.

        Raises JobConflict when another writer has begun since.
        """
        now = self._load()
        if now.writer not in self._writers:
            raise self._taken_over(now)
        added = rows_of(now) > self._acknowledged
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
            self._folder.write("manifest.json", to_json(manifest))
        except Exception as error:
            self._stopped = error
            raise
        self._mine = manifest
        self._acknowledged = rows_of(manifest)
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
            for group in grouped(tables):
                writer.write_table(group, row_group_size=group.num_rows)
        return merged
