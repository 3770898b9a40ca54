"""A row on its way through dispatch, under one name at each stage.

    schema.Row ─ render ─> RenderedRow ─ Stream.put ─> QueuedRow ─ many in one ─> schema.Chunk ─> a replica
    schema.Outcome <─ driver ─ RowResult <─ iterating over the stream ─ schema.Completion <─ a replica

`attempts.py` turns completions into results, or into queued rows again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from serve_app.dispatch.suspects import Death, is_suspect
from serve_app.schema import Completion, ReplicaInfo

# `schema.RowKey` in the driver, a position in a list in a client.
K = TypeVar("K")


class RenderedRow(msgspec.Struct, Generic[K], frozen=True):
    """A row that can be sent: its `prompt` as in `schema.Chunk`, and the caller's `key`, which comes back with the
    result."""

    key: K
    prompt: bytes
    expected_tokens: int = 0


class RowResult(msgspec.Struct, Generic[K], frozen=True):
    """The result of the row `key`: a completion by `replica`, or why no replica could compute it.

    `attempts` counts how often it was sent, also to replicas that died.
    """

    key: K
    completion: Completion
    replica: ReplicaInfo | None
    attempts: int


class Sender(Protocol):
    """Owner of queued rows: `stream.Stream`."""

    limit: Callable[[int], int]
    finished: bool

    def report(self, results: list[RowResult[Any]] | Exception) -> None:
        """Hand over results, or why there will be none."""


class QueuedRow(msgspec.Struct, eq=False):
    """A row that waits for a replica or is open on one.

    `attempts` counts sends without an answer, `errors` says why. `failures` are its own, `shared_failures` those of
    chunks with others.
    """

    stream: Sender
    key: object
    prompt: bytes
    expected_tokens: int = 0
    attempts: int = 0
    failures: int = 0
    shared_failures: int = 0
    errors: tuple[str, ...] = ()
    deaths: tuple[Death, ...] = ()

    @property
    def suspected(self) -> bool:
        """Whether it has to run alone."""
        return is_suspect(self.deaths)
