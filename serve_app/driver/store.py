"""The durable store: a folder a job, append-only segments and an atomically replaced manifest.

    runs/<job id>/job.json                 what was asked, written once
    runs/<job id>/rows.jsonl               the population, rendered, written once
    runs/<job id>/segments/000001.jsonl    committed outcomes, a line each
    runs/<job id>/manifest.json            the state, and which segments count

A segment counts once the manifest names it; the manifest is replaced by rename after the segment is on disk.
So a SIGKILL at any instant loses no committed row and leaves at most one segment that nobody reads.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serve_app.errors import BadSettings, JobConflict, JobNotFound, StoreError
from serve_app.schema import Outcome, Row

JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")


class Store:
    """All jobs under one folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()

    def create(self, job_id: str, spec: dict[str, Any], rows: Sequence[Row]) -> JobStore:
        """Write a new job down, whole. Raises JobConflict if there is one, StoreError if it cannot be written."""
        job = JobStore(self._folder(job_id))
        if (job.folder / "manifest.json").exists():
            raise JobConflict(f"job '{job_id}' exists already: give another id, or resume it")
        try:
            (job.folder / "segments").mkdir(parents=True, exist_ok=True)
            _write_atomically(job.folder / "rows.jsonl", (json.dumps(asdict(row)) for row in rows))
            _write_atomically(job.folder / "job.json", [json.dumps(spec, indent=1)])
            job.set_state("queued")
        except OSError as error:
            raise StoreError(f"store: cannot write {job.folder}: {error.strerror or error}") from error
        return job

    def open(self, job_id: str) -> JobStore:
        """An existing job. Raises JobNotFound."""
        job = JobStore(self._folder(job_id))
        if not (job.folder / "manifest.json").is_file():
            raise JobNotFound(f"no job '{job_id}' in {self.root}")
        return job

    def jobs(self) -> list[str]:
        """Ids of all jobs, newest first. Raises StoreError when the folder cannot be read."""
        try:
            found = [path.parent for path in self.root.glob("*/manifest.json")]
            return [
                folder.name for folder in sorted(found, key=lambda f: (f / "job.json").stat().st_mtime, reverse=True)
            ]
        except OSError as error:
            raise StoreError(f"store: cannot read {self.root}: {error.strerror or error}") from error

    def _folder(self, job_id: str) -> Path:
        if not JOB_ID.fullmatch(job_id):
            raise BadSettings(f"job id '{job_id}': use small letters, digits and dashes")
        return self.root / job_id


class JobStore:
    """One job's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def spec(self) -> dict[str, Any]:
        """What was asked."""
        spec: dict[str, Any] = json.loads(self._read("job.json"))
        return spec

    def rows(self) -> list[Row]:
        """The population, in the caller's order."""
        values = map(json.loads, self._lines("rows.jsonl"))
        return [Row(value["custom_id"], tuple(value["messages"])) for value in values]

    def manifest(self) -> dict[str, Any]:
        """{"state", "message", "report", "segments": [{"name", "rows"}]}."""
        manifest: dict[str, Any] = json.loads(self._read("manifest.json"))
        return manifest

    def outcomes(self) -> Iterator[Outcome]:
        """Every committed outcome, in the order of commit."""
        for segment in self.manifest()["segments"]:
            yield from map(Outcome.from_json, self._lines(f"segments/{segment['name']}"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the job for one run. Raises JobConflict while another process, or run, does."""
        with open(self.folder / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise JobConflict(f"job '{self.folder.name}' is being run by another driver") from error
            yield

    def commit(self, outcomes: Sequence[Outcome], report: dict[str, Any] | None = None) -> None:
        """Add outcomes, durably: when this returns they are on disk and every later reader sees them.

        `report` holds the figures of the run so far, and replaces the ones before. Raises StoreError.
        """
        manifest = self.manifest()
        name = f"{len(manifest['segments']) + 1:06d}.jsonl"
        try:
            _write_atomically(self.folder / "segments" / name, (outcome.to_json() for outcome in outcomes))
            manifest["segments"].append({"name": name, "rows": len(outcomes)})
            manifest["report"] = report or manifest["report"]
            self._replace_manifest(manifest)
        except OSError as error:
            raise StoreError(f"store: cannot write {self.folder}: {error.strerror or error}") from error

    def set_state(self, state: str, message: str = "", report: dict[str, Any] | None = None) -> None:
        """Record the job's state, why, and the figures of the run so far."""
        path = self.folder / "manifest.json"
        manifest = self.manifest() if path.exists() else {"segments": [], "report": {}}
        self._replace_manifest({**manifest, "state": state, "message": message, "report": report or manifest["report"]})

    def _replace_manifest(self, manifest: dict[str, Any]) -> None:
        _write_atomically(self.folder / "manifest.json", [json.dumps(manifest, indent=1)])

    def _lines(self, name: str) -> list[str]:
        # Not splitlines(): generated text may hold other characters that it takes for line ends.
        return self._read(name).removesuffix("\n").split("\n")

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text()
        except OSError as error:
            raise StoreError(f"store: cannot read {self.folder / name}: {error.strerror or error}") from error


def _write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write the lines so that `path` has all of them or is as it was, even if the power goes."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
