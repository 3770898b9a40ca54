"""What is kept of a batch beside its job, and the batch object that OpenAI's clients see.

    <store>/<job id>/manifest.json  the job, with the batch's request in its metadata
    <store>/<job id>/batch.json     when the batch reached which state, and its files

Knows a batch's fields and states. Does not know who changes them (see `run.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import msgspec
from pydantic import Field, field_validator

from serve_app.driver.batches.files import stamp
from serve_app.driver.store.store import TRIES, JobStore
from serve_app.errors import FileChanged, JobNotFound, StoreError
from serve_app.fields import Frozen
from serve_app.openai.usage import Usage
from serve_app.spec import Endpoint, JobStatus
from serve_app.storage.filesystem import Folder, Version

NAME = "batch.json"
# Of the job's metadata.
FIELD = "batch"
BATCH_ID = re.compile(r"batch_([0-9a-f]{24})")
JOB_ID = re.compile(r"batch-([0-9a-f]{24})")
WINDOW = re.compile(r"([1-9][0-9]{0,5})([smhd])")
# JSON may have them alone, and no store can keep them.
SURROGATE = re.compile("[\ud800-\udfff]")
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

End = Literal["completed", "failed", "expired", "cancelled"]


class ExpiresAfter(Frozen):
    """When a file goes, in seconds after its creation."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class BatchRequest(Frozen):
    """Body of `POST /v1/batches`. The window is OpenAI's `24h`, or any other number of s, m, h or d."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: str = Field(pattern=f"^{WINDOW.pattern}$")
    metadata: dict[str, str] | None = Field(None, max_length=16)
    output_expires_after: ExpiresAfter | None = None

    @field_validator("metadata")
    @classmethod
    def _short(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        if any(len(name) > 64 or len(value) > 512 for name, value in (metadata or {}).items()):
            raise ValueError("names have at most 64 characters, values 512")
        if any(SURROGATE.search(text) for pair in (metadata or {}).items() for text in pair):
            raise ValueError("half a surrogate pair is no text in UTF-8")
        return metadata

    @property
    def window_s(self) -> int:
        """The window in seconds."""
        number, unit = WINDOW.fullmatch(self.completion_window).groups()  # type: ignore[union-attr]  # by its pattern
        return int(number) * UNITS_S[unit]


class Asked(msgspec.Struct, frozen=True):
    """The batch's request, in the job's metadata. Times are Unix times in seconds."""

    input_file_id: str
    endpoint: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    output_expires_after_s: int | None = None


class BatchError(msgspec.Struct, frozen=True):
    """Why a batch has failed, as OpenAI's `errors` have it. `line` of the input counts from 1."""

    code: str
    message: str
    param: str | None = "input_file_id"
    line: int | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """How far the batch is. `completed` and `failed` count the lines of its files, once it has ended."""

    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    completed: int = 0
    failed: int = 0
    usage: Usage | None = None
    errors: tuple[BatchError, ...] = ()
    # How it ends, from when that is decided: its files are still being written.
    end: End | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return any((self.completed_at, self.failed_at, self.expired_at, self.cancelled_at))

    @property
    def status(self) -> str:
        """OpenAI's word for it."""
        states = {
            "completed": self.completed_at,
            "failed": self.failed_at,
            "expired": self.expired_at,
            "cancelled": self.cancelled_at,
            "cancelling": self.cancelling_at,
            "finalizing": self.finalizing_at,
            "in_progress": self.in_progress_at,
        }
        return next((state for state, at in states.items() if at is not None), "validating")


def new_job_id() -> str:
    """An id that sorts after all before it."""
    return f"batch-{stamp()}"


def job_id_of(batch_id: str) -> str:
    """The job of a batch. Raises JobNotFound for a malformed id."""
    if found := BATCH_ID.fullmatch(batch_id):
        return f"batch-{found[1]}"
    raise JobNotFound(f"no batch '{batch_id[:80]}': ids are 'batch_' and 24 hex digits")


def batch_id_of(job_id: str) -> str:
    """The batch of a job."""
    return job_id.replace("-", "_", 1)


def load(job: JobStore) -> tuple[Asked, Record]:
    """Raises JobNotFound for a job that is no batch, StoreError."""
    given = job.spec()["metadata"].get(FIELD)
    try:
        asked = msgspec.convert(given, Asked)
    except msgspec.ValidationError:  # a population may have any metadata
        raise JobNotFound(f"no batch '{batch_id_of(job.job_id)}'") from None
    return asked, _load(job)[0]


def change(job: JobStore, make: Callable[[Record], Record]) -> Record:
    """Replace the record by what `make` gives for it, on condition that nobody else has replaced it meanwhile; else
    `make` is asked again. Returns the record as it is now. Raises StoreError, and what `make` raises."""
    for _ in range(TRIES):
        record, seen = _load(job)
        changed = make(record)
        if changed == record:
            return record
        with suppress(FileChanged):
            Folder.at(job.folder).replace(NAME, msgspec.json.encode(changed), seen)
            return changed
    raise StoreError(f"store: {job.folder}: others replace {NAME} all the time")


def _load(job: JobStore) -> tuple[Record, Version | None]:
    found = Folder.at(job.folder).load(NAME)
    try:
        return (Record(), None) if found is None else (_decode(found[0]), found[1])
    except msgspec.MsgspecError as error:
        raise StoreError(f"store: cannot read {job.path(NAME)}: {error}") from error


def batch_object(job_id: str, asked: Asked, record: Record, job: JobStatus) -> dict[str, Any]:
    """OpenAI's batch object. Its files are named once it has ended: before, they are incomplete."""
    times = {
        name: getattr(record, f"{name}_at")
        for name in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    }
    errors = record.ended and record.errors
    counts = (record.completed, record.failed) if record.ended else (job.ok, job.failed + job.invalid)
    return {
        "id": batch_id_of(job_id),
        "object": "batch",
        "endpoint": asked.endpoint,
        "model": job.model or None,
        "errors": {"object": "list", "data": list(msgspec.to_builtins(record.errors))} if errors else None,
        "input_file_id": asked.input_file_id,
        "completion_window": asked.completion_window,
        "status": record.status,
        "output_file_id": record.output_file_id if record.ended else None,
        "error_file_id": record.error_file_id if record.ended else None,
        "created_at": asked.created_at,
        "expires_at": asked.expires_at,
        **{f"{name}_at": at for name, at in times.items()},
        "request_counts": {"total": max(job.total, sum(counts)), "completed": counts[0], "failed": counts[1]},
        "usage": _usage(record.usage) if record.usage else None,
        "metadata": asked.metadata,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


_decode = msgspec.json.Decoder(Record).decode
