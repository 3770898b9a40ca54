"""A run's folder: its checkpoint, and the trace of all steps.

    checkpoint.json   what was asked, the state, and how long the trace was then; replaced as a whole
    trace.jsonl       one line a step; lines beyond the checkpoint's length are cut off at a resume
    results.jsonl, report.json, report.html   written at the end

The trace is written and synced first, so any kill leaves a matching checkpoint.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from serve_app.atomic import atomic_write
from serve_app.errors import BadSettings, StoreError
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.search.search import Search
from serve_app.workloads.icm.search.state import State, Step

CHECKPOINT, TRACE = "checkpoint.json", "trace.jsonl"
# May change on resume: length and scoring ahead do not alter the chain.
FREE = frozenset({"iterations", "speculate"})
# Steps without model calls before a checkpoint.
QUIET_STEPS = 100


class Checkpoint(msgspec.Struct, frozen=True):
    """`asked` are the command's arguments for a resume; `dataset` hashes examples and relations; `start` are iteration
    0's labels by id. `alphas` and `model` made the chain."""

    settings: dict[str, Any]
    dataset: str
    asked: dict[str, Any]
    state: State
    start: dict[str, int]
    trace_bytes: int
    alphas: tuple[float, ...] = ()
    model: str = ""


class Run:
    """A folder with at most one run, by `model` in any naming ("": unknown). Raises StoreError if it cannot be read or
    written."""

    def __init__(self, folder: Path, model: str = "") -> None:
        self.folder = folder
        self.model = model
        # Lines beyond the checkpoint's are of an interrupted run.
        self._trace_bytes = 0

    def load(self) -> Checkpoint:
        """The checkpoint to continue. Raises StoreError if missing or foreign."""
        path = self.folder / CHECKPOINT
        try:
            return msgspec.json.decode(path.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            raise StoreError(
                f"--resume: {self.folder} has no {CHECKPOINT}, so there is nothing to go on from"
            ) from None
        except (OSError, msgspec.DecodeError) as error:
            raise StoreError(f"--resume: {path} cannot be read: {error}") from error

    def begin(self, settings: SearchSettings, dataset: Dataset) -> State | None:
        """The state to continue from, None in a new folder. Raises BadSettings naming the setting that differs from the
        folder's run, or for other data.
        """
        if not self.begun:
            return None
        checkpoint = self.load()
        for name, value in settings.model_dump(mode="json").items():
            if name not in FREE and checkpoint.settings.get(name) != value:
                raise BadSettings(
                    f"{self.folder} holds a run with {name} {checkpoint.settings.get(name)}, not {value}: "
                    "resume with the same settings, or give another --out"
                )
        if checkpoint.alphas not in ((), settings.alphas):
            raise BadSettings(
                f"{self.folder} holds a run with α {checkpoint.alphas}, not {settings.alphas}: give another --out"
            )
        if checkpoint.dataset != fingerprint(dataset):
            raise BadSettings(f"{self.folder} holds a run on other data: give the same --data, or another --out")
        if self.model != checkpoint.model and self.model and checkpoint.model:
            raise BadSettings(
                f"{self.folder} holds a run of model '{checkpoint.model}', not '{self.model}': serve that one, or give "
                "another --out"
            )
        self._trace_bytes = checkpoint.trace_bytes
        self._cut_trace()
        return checkpoint.state

    @property
    def begun(self) -> bool:
        """Whether there is a run to continue."""
        return (self.folder / CHECKPOINT).exists()

    def follow(self, search: Search, asked: dict[str, Any]) -> Iterator[Step]:
        """Record the search's steps, with a checkpoint before the first, after each model call, at the end, and when
        the caller stops or an error occurs."""
        start = self._start(search)
        if not self.begun:
            self._save(search, [], asked, start)
        waiting: list[Step] = []
        followed = search.state.iteration
        try:
            for step in search:
                waiting.append(step)
                followed = step.iteration
                if step.calls or len(waiting) >= QUIET_STEPS:
                    self._save(search, waiting, asked, start)
                    waiting = []
                yield step
        finally:
            if search.state.iteration == followed:  # an interrupted step is repeated
                self._save(search, waiting, asked, start)

    def steps(self) -> list[Step]:
        """The trace."""
        try:
            lines = (self.folder / TRACE).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [msgspec.json.decode(line, type=Step) for line in lines]

    def _start(self, search: Search) -> dict[str, int]:
        if self.begun:
            return self.load().start
        labels = search.state.current.labels
        examples = search.dataset.examples
        return {example.id: label for example, label in zip(examples, labels, strict=True) if label in (0, 1)}

    def _save(self, search: Search, steps: list[Step], asked: dict[str, Any], start: dict[str, int]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._cut_trace()
            with open(self.folder / TRACE, "ab") as trace:
                trace.writelines(msgspec.json.encode(step) + b"\n" for step in steps)
                trace.flush()
                os.fsync(trace.fileno())
                trace_bytes = trace.tell()
            settings = search.settings.model_dump(mode="json")
            data = fingerprint(search.dataset)
            checkpoint = Checkpoint(
                settings, data, asked, search.state, start, trace_bytes, search.settings.alphas, self.model
            )
            with atomic_write(self.folder / CHECKPOINT) as file:
                file.write(msgspec.json.encode(checkpoint))
            self._trace_bytes = trace_bytes
        except OSError as error:
            raise StoreError(f"--out: cannot write {self.folder}: {error.strerror or error}") from error

    def _cut_trace(self) -> None:
        """To the checkpoint's length: an interrupted save may leave more."""
        try:
            with open(self.folder / TRACE, "ab") as trace:
                if trace.tell() < self._trace_bytes:
                    raise StoreError(f"{self.folder / TRACE} is shorter than its checkpoint says: it was changed")
                trace.truncate(self._trace_bytes)
        except OSError as error:
            raise StoreError(f"cannot write {self.folder / TRACE}: {error.strerror or error}") from error


def fingerprint(dataset: Dataset) -> str:
    """Hash of the search's data, 32 hex digits."""
    seen = (dataset.instruction, dataset.words, dataset.examples, dataset.relations)
    return hashlib.sha256(msgspec.json.encode(seen)).hexdigest()[:32]
