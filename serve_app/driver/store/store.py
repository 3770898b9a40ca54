"""The durable store: a folder a job, append-only segments and atomically replaced manifests.

    <root>/<job id>/manifest.json                    what was asked, and the state
    <root>/<job id>/parts/0000/manifest.json         which segments of the part count
    <root>/<job id>/parts/0000/segments/….parquet    committed outcomes, a column a field

Knows jobs, their parts and outcomes. Does not know who runs them, nor how files become durable (see `filesystem.py`).

A segment counts once its part's manifest names it, and that is replaced after the segment is on disk. So a SIGKILL at
any instant loses no committed row, tears none, and leaves at most files that nobody reads. A manifest is only ever
replaced on condition that it is as the writer has read it. So each part has one writer at a time: each raises the
manifest's epoch when it begins, and one that finds another's there stops.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO, Unpack

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from serve_app.driver.store.log import FAN_OUT, OutcomeLog
from serve_app.driver.store.manifest import (
    MANIFEST,
    AnsweredBy,
    Change,
    Manifest,
    StoredManifest,
    load_file,
    replace_file,
)
from serve_app.driver.store.table import read_outcomes
from serve_app.errors import BadSettings, FileChanged, JobConflict, JobNotFound, StoreError
from serve_app.schema import Outcome, Status
from serve_app.spec import JobState
from serve_app.storage.filesystem import LOCK, Folder, Version, store_errors

JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")
RUN_LOCK = "lock"
RESERVED = {"job.json", MANIFEST, "parts", RUN_LOCK}
# Manifests read at once: on an object store each takes a round trip.
READERS = 16
# Others may replace a manifest between our look and our write, but not for ever.
TRIES = 20


class Store:
    """All jobs under one folder or URL. Raises BadSettings for one that cannot keep jobs."""

    def __init__(self, root_url: str) -> None:
        self._root = Folder.at(root_url)

    @property
    def folder(self) -> str:
        """Absolute path or URL."""
        return self._root.url

    def create(self, job_id: str, spec: dict[str, Any], *, uploading: bool = False) -> JobStore:
        """Write a new job down, as queued; `uploading` says that its rows are still to come.

        Raises JobConflict if there is one, BadSettings for a malformed id, StoreError if it cannot be written.
        """
        job = self._job(job_id)
        try:
            job.start(spec, uploading=uploading)
        except FileChanged as error:
            raise JobConflict(f"job '{job_id}' exists already: give another id, or resume it") from error
        return job

    def open(self, job_id: str) -> JobStore:
        """An existing job. Raises JobNotFound, BadSettings for a malformed id."""
        job = self._job(job_id)
        if not job.exists():
            raise JobNotFound(f"no job '{job_id}' in {self.folder}")
        return job

    def jobs(self, *, unreadable: bool = False) -> list[str]:
        """Ids of all jobs, newest first, after those that are `unreadable`, if they are asked for.

        Raises StoreError when the folder cannot be read, or a job, if those are not asked for.
        """
        names = [info.base_name for info in self._root.list()]
        ids = [name for name in names if JOB_ID.fullmatch(name)]

        def created_at(job_id: str) -> str:
            try:
                return self._job(job_id).created_at()
            except StoreError:
                if unreadable:
                    return "unreadable"
                raise

        with ThreadPoolExecutor(READERS) as threads:
            created = list(threads.map(created_at, ids))
        return [job_id for at, job_id in sorted(zip(created, ids, strict=True), reverse=True) if at]

    def delete(self, job_id: str) -> None:
        """Remove a job and all its files. Raises JobNotFound."""
        self.open(job_id).clear()

    def _job(self, job_id: str) -> JobStore:
        if not JOB_ID.fullmatch(job_id):
            raise BadSettings(f"'{job_id}' is no job id: use up to 80 small letters, digits and dashes", field="job_id")
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
        """Whether there is such a job."""
        return load_file(self._folder, StoredManifest) is not None

    def created_at(self) -> str:
        """ISO 8601, UTC; "" if there is no such job."""
        found = load_file(self._folder, StoredManifest)
        return found[0]["created_at"] if found else ""

    def start(self, spec: dict[str, Any], *, uploading: bool = False) -> None:
        """Write the job down. Raises FileChanged if there is one."""
        # What a deletion that was cut short has left must not become this job's. It is listed before the look: all of
        # it is then older than any job that another driver creates of this name.
        left = [info for info in self._folder.list(recursive=True) if info.is_file]
        if self.exists():
            raise FileChanged(f"store: {self.folder} holds a job")
        for info in left:
            if info.base_name not in (RUN_LOCK, LOCK):
                self._folder.delete(info.path.removeprefix(self._folder.path).lstrip("/"))
        self._folder.make()
        created_at = datetime.now(UTC).isoformat(timespec="microseconds")
        manifest = {"state": JobState.QUEUED, "message": "", "parts": [], "report": {}, "created_at": created_at}
        marked = {"uploading": True} if uploading else {}
        replace_file(self._folder, {**manifest, **marked, "spec": spec}, None)

    def clear(self) -> None:
        """Delete the job. Its manifest goes first: half a job is none."""
        self._folder.delete(MANIFEST)
        self._folder.clear()

    def read(self) -> tuple[Manifest, dict[str, Any]]:
        """The job's state, and what was asked."""
        manifest, _ = self._load()
        spec = manifest.pop("spec", None)
        return manifest, msgspec.json.decode(self._folder.read("job.json")) if spec is None else spec

    def spec(self) -> dict[str, Any]:
        """What was asked."""
        return self.read()[1]

    def manifest(self) -> Manifest:
        """The job's state."""
        manifest, _ = self._load()
        manifest.pop("spec", None)
        return manifest

    def _load(self) -> tuple[StoredManifest, Version]:
        found = load_file(self._folder, StoredManifest)
        if found is None:
            raise JobNotFound(f"no job '{self.job_id}' any more: {self.folder} has no {MANIFEST}")
        return found

    def update(self, *, expected: Collection[JobState] = tuple(JobState), **changed: Unpack[Change]) -> None:
        """Replace fields of the manifest, all or none, if the state is among the `expected`. A `report` keeps those of
        its figures that are not given anew.

        Raises JobConflict if it is not, and then nothing is written: another driver may have ended the job.
        """
        for _ in range(TRIES):
            manifest, version = self._load()
            if manifest["state"] not in expected:
                raise JobConflict(f"job '{self.job_id}' is {manifest['state']}, by another driver or request")
            report = {**manifest["report"], **changed.get("report", {})}
            try:
                replace_file(self._folder, {**manifest, **changed, "report": report}, version)
                return
            except FileChanged:
                continue
        raise StoreError(f"store: {self.folder}: others replace {MANIFEST} all the time")

    def pin(self, model: str, identity: str) -> str:
        """Record whose the job's answers are, once; returns the identity that is part of its rows'.

        That is "" for a job whose first answers are older than identities: it knows their model by name only. Raises
        JobConflict, naming both, for another model than the recorded one.
        """
        for _ in range(TRIES):
            manifest, version = self._load()
            if (before := manifest.get("engine")) is not None:
                if before["model"] == model and before["identity"] in ("", identity):
                    return before["identity"]
                now = _named({"model": model, "identity": identity})
                raise JobConflict(
                    f"job '{self.job_id}' was answered as another question than would be asked now: by "
                    f"{_named(before)}, and the replicas serve {now}: serve the model that it began with (weights, "
                    "tokenizer, chat template, data type, adapters), or submit a new job"
                )
            mine: AnsweredBy = {"model": model, "identity": "" if self.answered() else identity}
            with suppress(FileChanged):
                replace_file(self._folder, {**manifest, "engine": mine}, version)
                return mine["identity"]
        raise StoreError(f"store: {self._folder}: others replace {MANIFEST} all the time")

    def answered(self) -> bool:
        """Whether any row is committed."""
        return any(log.rows for log in self.parts())

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
            yield from read_outcomes(table)

    # --- files beside them ---

    def path(self, name: str) -> str:
        """Path or URL of a file of the job's own, such as its uploaded input. Raises BadSettings."""
        if not FILE_NAME.fullmatch(name) or name in RESERVED:
            taken = ", ".join(sorted(RESERVED))
            allowed = f"letters, digits, '.', '-' and '_', and none of {taken}"
            raise BadSettings(f"file name '{name}': use {allowed}", field="file")
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

        Only a local file system has locks. They save work; it is the epoch that keeps a part's writers apart.
        """
        if not self._folder.local:
            yield
            return
        folder = self._folder if part is None else self._folder.child("parts", f"{part:04d}")
        folder.make()
        lock = FileLock(f"{folder.path}/{RUN_LOCK}", thread_local=False)  # whichever thread ends the run
        with store_errors("lock", folder.filesystem, folder.path):
            try:
                lock.acquire(blocking=False)
            except Timeout as error:
                what = f"job '{self.job_id}'" if part is None else f"part {part} of job '{self.job_id}'"
                raise JobConflict(f"{what} is being run by another driver") from error
        try:
            yield
        finally:
            lock.release()


def _named(engine: AnsweredBy) -> str:
    return f"'{engine['model']}' ({engine['identity'] or 'of unknown identity'})"
