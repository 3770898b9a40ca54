"""All errors of this project.

ServeAppError
├── BadSettings           invalid field of config.yaml, a command or a request
│   ├── UnknownOption     unknown engine option
│   ├── PromptTooLong     more tokens than max_prompt_tokens
│   └── ModelNotFound     no model by this folder or name
├── NotEnoughMemory       the replica does not fit on this machine
├── EngineFailed          the engine died or hangs; the replica must be replaced
├── ReplicaLost           the replica's process or node is gone, mostly by an outside cause
├── StoreError            a run's folder cannot be read or written
│   ├── FileChanged       another process replaced the file
│   └── JobNotFound       no such job in the store
│       └── NoSuchFile    no such OpenAI file in the store
├── JobConflict           the job's state does not allow the request
│   └── TakenOver         another driver runs it now
├── ScoringFailed         a row that a search needs has no answer
└── ServerUnavailable     the server does not answer, or answered with an error

Each has one message that names the fault and the fix, and pickles unchanged for Ray. A failed row is not an error but
an outcome (schema.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class ServeAppError(Exception):
    """Base of this project's errors."""


class BadSettings(ServeAppError, ValueError):
    """Raised when a field of settings, a command or a request is wrong.

    `field` is its dotted name, which begins the message; None without a single field at fault.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field

    @classmethod
    def of_fields(cls, errors: Iterable[Mapping[str, Any]], *above: str) -> BadSettings:
        """From pydantic's `errors()`: at most five faults with place (prefixed by `above`) and reason.

        Places omit `body`, `query` and `path`.
        """
        found = []
        for error in errors:
            place = [*above, *(str(part) for part in error["loc"] if part not in ("body", "query", "path"))]
            found.append((".".join(place), error["msg"]))
        (field, first), *others = found[:5]
        return cls("; ".join([first, *(": ".join(filter(None, other)) for other in others)]), field=field or None)


class UnknownOption(BadSettings):
    """Raised when the engine has no option of that name."""


class PromptTooLong(BadSettings):
    """Raised when a prompt has more tokens than max_prompt_tokens."""


class ModelNotFound(BadSettings):
    """Raised when a folder or name does not lead to a model."""


class NotEnoughMemory(ServeAppError):
    """Raised when a replica's weights and KV cache exceed free memory."""


class EngineFailed(ServeAppError):
    """Raised when the engine died, hangs or was shut down."""


class ReplicaLost(ServeAppError):
    """Raised when a replica's process or node is lost or stopped during a call."""


class StoreError(ServeAppError):
    """Raised when a run's folder cannot be read or written."""


class FileChanged(StoreError):
    """Raised when another process replaced a file since it was read."""


class JobNotFound(StoreError):
    """Raised when the store has no job of that id."""


class NoSuchFile(JobNotFound):
    """Raised when the store has no OpenAI file of that id."""


class JobConflict(ServeAppError):
    """Raised when a job's state does not allow a request (running twice, resuming a finished job)."""


class TakenOver(JobConflict):
    """Raised when another driver runs the job now: only that one may write its state."""


class ServerUnavailable(ServeAppError):
    """Raised when the server does not answer, or answers with an error."""


class ScoringFailed(ServeAppError):
    """Raised when a label's probability is missing. The search stops and can be resumed."""
