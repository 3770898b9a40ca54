"""Every error this project raises.

    ServeAppError
    ├── BadSettings           a field of config.yaml, of a command or of a request is wrong
    │   ├── UnknownOption     an option that the engine does not have
    │   ├── PromptTooLong     a prompt has more tokens than max_prompt_tokens
    │   └── ModelNotFound     the model's folder or name does not lead to a model
    ├── NotEnoughMemory       the replica would not fit on this machine
    ├── EngineFailed          the engine died or hangs; the replica must be replaced
    ├── ReplicaLost           the replica's process or node is gone, mostly by a cause outside of it
    ├── StoreError            a run's folder cannot be read or written
    │   ├── FileChanged       another process has replaced a file since it was read
    │   └── JobNotFound       no job of that id in the store
    │       └── NoSuchFile    no OpenAI file of that id in the store
    ├── JobConflict           the job is not in a state that allows the request
    │   └── TakenOver         another driver has begun to run it
    ├── ScoringFailed         a row that a search cannot do without has no answer
    └── ServerUnavailable     the server does not answer, or answered with an error

All of them carry one message that names what is wrong and how to mend it, and pickle as they are, since
they cross Ray's process boundaries. A row that fails is no error here: it is an outcome (schema.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class ServeAppError(Exception):
    """Base of this project's errors."""


class BadSettings(ServeAppError, ValueError):
    """Raised when a field of a settings file, a command or a request is wrong.

    `field` is its name, with dots where it is nested, and the text begins with it. None where no one field is wrong.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field

    @classmethod
    def of_fields(cls, errors: Iterable[Mapping[str, Any]], *above: str) -> BadSettings:
        """From pydantic's `errors()`: where a value is wrong (`above` stands before), and why; five at most.

        The place is given without `body`, `query` and `path`; that of the first is the `field`.
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
    """Raised when a prompt of an HTTP request has more tokens than max_prompt_tokens."""


class ModelNotFound(BadSettings):
    """Raised when the model's folder or name does not lead to a model."""


class NotEnoughMemory(ServeAppError):
    """Raised when weights and KV cache of a replica do not fit into the memory that is free."""


class EngineFailed(ServeAppError):
    """Raised when the engine died, hangs or was shut down; its replica must be replaced."""


class ReplicaLost(ServeAppError):
    """Raised when a replica's process or node is gone, or is being stopped, with a call open on it."""


class StoreError(ServeAppError):
    """Raised when a run's folder cannot be read or written."""


class FileChanged(StoreError):
    """Raised when a file that was to be replaced is not as it was seen: another process has written it meanwhile."""


class JobNotFound(StoreError):
    """Raised when the store holds no job of that id."""


class NoSuchFile(JobNotFound):
    """Raised when the store holds no OpenAI file of that id, or no longer."""


class JobConflict(ServeAppError):
    """Raised when a job's state does not allow what was asked (running twice, resuming a finished job)."""


class TakenOver(JobConflict):
    """Raised when another driver has begun to run what this one ran: its state is the other one's to write."""


class ServerUnavailable(ServeAppError):
    """Raised when the server does not answer, or answers with an error."""


class ScoringFailed(ServeAppError):
    """Raised when a search asked for a label's probability and got none: it stops there and can be resumed."""
