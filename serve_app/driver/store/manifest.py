"""What a store's small files hold: of a job, of a part and of its segments."""

from __future__ import annotations

from typing import Any, TypedDict, TypeVar

import msgspec

from serve_app.errors import StoreError
from serve_app.spec import JobState
from serve_app.storage.filesystem import Folder, join

T = TypeVar("T")


class Manifest(TypedDict):
    """A job's state. `parts` are their [start, stop) rows, [] until the population was counted."""

    state: JobState
    message: str
    parts: list[list[int]]
    report: dict[str, Any]
    created_at: str


class Change(TypedDict, total=False):
    """Fields of a job's manifest that may change."""

    state: JobState
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


def rows_of(manifest: PartManifest) -> int:
    return sum(segment.rows for segment in manifest.segments)


def find_file(folder: Folder, form: type[T]) -> T | None:
    """The folder's manifest, None if it has none."""
    data = folder.find("manifest.json")
    try:
        return None if data is None else msgspec.json.decode(data, type=form)
    except msgspec.MsgspecError as error:
        raise StoreError(f"store: cannot read {join(folder.url, 'manifest.json')}: {error}") from error


def to_json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
