"""A row on its way through dispatch, under one name at each stage.

    schema.Row ─ render ─> RenderedRow ─ Stream.put ─> QueuedRow ─ many in one ─> schema.Chunk ─> a replica
    schema.Outcome <─ driver ─ RowResult <─ iterating over the stream ─ schema.Completion <─ a replica

`attempts.py` turns completions into results, or into queued rows again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from serve_app.dispatch.suspects import Death, suspicious
from serve_app.schema import Completion, ReplicaInfo

# What the caller knows a row by: `schema.RowKey` in the driver, a position in a list of prompts in a client.
K = TypeVar("K")


class RenderedRow(msgspec.Struct, Generic[K], frozen=True):
    """A row that can be sent: its `prompt` as `schema.Chunk` has it, and the caller's `key`, which comes back with it.

    `expected_tokens` is `schema.Row`'s.
    """

    key: K
    prompt: bytes
    expected_tokens: int = 0


class RowResult(msgspec.Struct, Generic[K], frozen=True):
    """What became of the row put in as `key`: a completion by `replica`, or no replica could compute it (`error`).

    `attempts` is how often it was sent, also to replicas that died under it.
    """

    key: K
    completion: Completion
    replica: ReplicaInfo | None
    attempts: int


class Sender(Protocol):
    """Whose rows they are, seen from the queue: `stream.Stream`."""

    limit: Callable[[int], int]
    finished: bool

    def report(self, results: list[RowResult[Any]] | Exception) -> None:
        """Hand results, or why there will be none, to whoever put the rows."""


class QueuedRow(msgspec.Struct, eq=False):
    """A row that waits for a replica or is open on one, and what went wrong so far.

    `attempts` is how often it was sent without an answer, and `errors` why. `failures` are those of its own, and
    `shared_failures` those of a chunk that it was in with others.
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
        return suspicious(self.deaths)
