"""What a store's small files hold: of a job, of a part and of its segments."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, TypeVar

import msgspec

from serve_app.errors import StoreError
from serve_app.spec import JobState
from serve_app.storage.filesystem import Folder, Version, join

T = TypeVar("T")

MANIFEST = "manifest.json"


class AnsweredBy(TypedDict):
    """The served name of a model and its `EngineInfo.identity`, "" for jobs that were begun before there was one."""

    model: str
    identity: str


class Manifest(TypedDict):
    """A job's state. `parts` are their [start, stop) rows, [] until the population was counted.

    While `uploading` its rows are still being written, and no driver runs it. `engine` is what its answers are from,
    once it has any.
    """

    state: JobState
    message: str
    parts: list[list[int]]
    report: dict[str, Any]
    created_at: str
    uploading: NotRequired[bool]
    engine: NotRequired[AnsweredBy | None]


class StoredManifest(Manifest):
    """The manifest as it lies in the store, with what was asked, which never changes.

    Jobs of version 0.1 and before have that in a `job.json` of its own.
    """

    spec: NotRequired[dict[str, Any]]


class Change(TypedDict, total=False):
    """Fields of a job's manifest that may change."""

    state: JobState
    message: str
    parts: list[list[int]]
    report: dict[str, Any]
    uploading: bool
    engine: AnsweredBy | None


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


def rows_of(manifest: PartManifest) -> int:
    return sum(segment.rows for segment in manifest.segments)


def load_file(folder: Folder, form: type[T]) -> tuple[T, Version] | None:
    """The folder's manifest and its version, None if it has none."""
    found = folder.load(MANIFEST)
    try:
        return None if found is None else (msgspec.json.decode(found[0], type=form), found[1])
    except msgspec.MsgspecError as error:
        raise StoreError(f"store: cannot read {join(folder.url, MANIFEST)}: {error}") from error


def replace_file(folder: Folder, value: Any, seen: Version | None) -> Version:
    """Replace the folder's manifest if it is still the version that was `seen`. Raises FileChanged if not."""
    return folder.replace(MANIFEST, to_json(value), seen)


def to_json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
