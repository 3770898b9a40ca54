"""Outcomes, and a writer of them."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from serve_app.driver.store.log import OutcomeLog
from serve_app.driver.store.store import JobStore, Store
from serve_app.errors import JobConflict
from serve_app.schema import Outcome

HASH = hashlib.sha256(b"question").hexdigest()[:32]
OUTCOME = Outcome(
    "row-0", HASH, "ok", {"text": "a\u2028b\x85c\n"}, None, 1, "r", "m", "v", False, 1, 0, 1, 0.5, "2026-01-01T00:00:00"
)


def some(*ids: object) -> list[Outcome]:
    return [replace(OUTCOME, custom_id=str(i)) for i in ids]


def ids(log: OutcomeLog | JobStore, after: int = 0) -> list[str]:
    return [outcome.custom_id for outcome in log.outcomes(after)]


def writer(root: str | Path, job_id: str = "job-1", part: int = 0, **options: Any) -> OutcomeLog:
    store = Store(str(root))
    with suppress(JobConflict):
        store.create(job_id, {})
    log = store.open(job_id).part(part, **options)
    log.begin()
    return log
