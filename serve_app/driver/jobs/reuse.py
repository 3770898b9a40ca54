"""Answers that other jobs of the store have already committed to the same question.

The question is the content hash; only `ok` answers count, sampled text like any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from serve_app.driver.store.idmap import IdMap
from serve_app.driver.store.log import OutcomeLog
from serve_app.driver.store.store import Store
from serve_app.driver.store.table import from_table
from serve_app.errors import JobNotFound, StoreError
from serve_app.schema import Outcome

# Cached tables: neighbouring questions have their answers in the same ones.
TABLES = 16


class TablePlace(NamedTuple):
    """Where a table of outcomes begins: the job, its log, and the row in the log."""

    job_id: str
    log: OutcomeLog
    start: int


class Reuse:
    """An index over all other jobs of `workload`. Raises StoreError when one cannot be read."""

    def __init__(self, store: Store, job_id: str, workload: str) -> None:
        self._index = IdMap()
        self._tables: list[TablePlace] = []
        self._table = lru_cache(maxsize=TABLES)(self._read)
        for other in store.jobs():
            if other != job_id:
                self._add_job(store, other, workload)

    def _add_job(self, store: Store, job_id: str, workload: str) -> None:
        try:
            job = store.open(job_id)
            if job.spec()["workload"] == workload:
                for log in job.parts():
                    self._add(job_id, log)
        except StoreError:
            with suppress(JobNotFound):  # deleted meanwhile: what it had is not looked for
                store.open(job_id)
                raise

    def _add(self, job_id: str, log: OutcomeLog) -> None:
        start = 0
        for table in log.tables(columns=["content_hash", "status"]):
            base = len(self._tables) << 32
            hashes: list[Any] = table["content_hash"].to_pylist()
            rows = {
                bytes.fromhex(content_hash): base + i
                for i, (content_hash, status) in enumerate(zip(hashes, table["status"].to_pylist(), strict=True))
                if status == "ok"
            }
            keys = list(rows)
            fresh = [key for key, known in zip(keys, self._index.lookup(keys), strict=True) if known is None]
            self._index.add(fresh, np.array([rows[key] for key in fresh], dtype=np.uint64))
            self._tables.append(TablePlace(job_id, log, start))
            start += table.num_rows

    def _read(self, number: int) -> pa.Table | None:
        """None if the job was deleted meanwhile."""
        place = self._tables[number]
        try:
            return next(place.log.tables(after=place.start), None)
        except StoreError:
            if place.log.rows > place.start:
                raise
            return None

    def find(self, content_hashes: Sequence[str]) -> dict[str, Outcome]:
        """Content hash -> answer, where known."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for place in self._index.lookup([bytes.fromhex(content_hash) for content_hash in content_hashes]):
            if place is not None:
                wanted[place >> 32].append(place & 0xFFFFFFFF)
        found = {}
        for number, rows in wanted.items():
            job_id = self._tables[number].job_id
            table = self._table(number)
            for outcome in from_table(table.take(rows)) if table is not None else ():
                first = outcome.reused_from or job_id
                found[outcome.content_hash] = msgspec.structs.replace(outcome, reused_from=first)
        return found
