"""The types of a row at each stage of dispatch.

    schema.Row ─ render ─> RenderedRow ─ Stream.put ─> QueuedRow ─ many in one ─> schema.Chunk ─> a replica
    schema.Outcome <─ driver ─ RowResult <─ iterating over the stream ─ schema.Completion <─ a replica

`attempts.py` turns completions into results or queued rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from serve_app.dispatch.memory import Holding
from serve_app.dispatch.suspects import Death, is_suspect
from serve_app.schema import Completion, ReplicaInfo

# `schema.RowKey` in the driver, a list position in a client.
K = TypeVar("K")


class RenderedRow(msgspec.Struct, Generic[K], frozen=True):
    """A row ready to send: `prompt` as in `schema.Chunk`, and the caller's `key`."""

    key: K
    prompt: bytes
    expected_tokens: int = 0


class RowResult(msgspec.Struct, Generic[K], frozen=True):
    """The result of row `key`: a completion by `replica`, or why none could compute it. `attempts` counts sends, also
    to replicas that died.
    """

    key: K
    completion: Completion
    replica: ReplicaInfo | None
    attempts: int


class Sender(Protocol):
    """Owner of queued rows: `stream.Stream`."""

    limit: Callable[[int], int]
    finished: bool
    prompts: Holding
    answers: Holding

    def report(self, results: list[RowResult[Any]]) -> int:
        """Hand over results; returns the bytes of the answers."""


class QueuedRow(msgspec.Struct, eq=False):
    """A row that waits for a replica or is open on one.

    `attempts` counts unanswered sends, `errors` gives reasons. `failures` are its own, `shared_failures` those of
    shared chunks.
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
    answered: bool = False

    @property
    def suspected(self) -> bool:
        return is_suspect(self.deaths)
