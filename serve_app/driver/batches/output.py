"""The output and error files of an ended batch, made of its job's committed outcomes.

Knows how outcomes, and rows without one, become lines. Does not know why the batch ended. Both files are streamed; a
driver that dies while writing leaves none, and the next one starts over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from serve_app.driver.batches.files import FileStore
from serve_app.driver.sources.requests import answered_line, lost_line, refused_line
from serve_app.driver.sources.source import Source
from serve_app.driver.store.log import id_keys
from serve_app.driver.store.store import JobStore
from serve_app.errors import BadSettings
from serve_app.openai.usage import Usage, usage_of_response

logger = logging.getLogger(__name__)

# Lines held in memory at once: a response may be long.
BATCH_ROWS = 256
# Rows whose ids are looked up together.
LOOKUP_ROWS = 8192


class Lost(NamedTuple):
    """What the error file says of a row that was not answered."""

    code: str
    message: str


class BatchOutput:
    """Writes the files of one batch. All methods block, and raise StoreError."""

    def __init__(self, batch_id: str, job: JobStore, files: FileStore, *, expires_after_s: int | None = None) -> None:
        self._batch_id = batch_id
        self._job = job
        self._files = files
        self._expires_after_s = expires_after_s
        self.usage = Usage()

    def write_answers(self, file_id: str) -> int:
        """The output file: a line an answered request. Returns their number; no file without any."""
        return self._write(file_id, "output", self._answers())

    def write_errors(self, file_id: str, open_source: Callable[[], Source], lost: Lost | None) -> int:
        """The error file: a line each refused or failed request, and with `lost` each request without an outcome.
        Returns their number; no file without any."""

        def lines() -> Iterator[bytes]:
            yield from self._failures()
            if lost is not None:
                yield from self._lost(open_source, lost)

        return self._write(file_id, "error", lines())

    def _write(self, file_id: str, kind: str, lines: Iterator[bytes]) -> int:
        first = next(lines, None)
        if first is None:
            return 0
        count = 1
        name = f"{self._batch_id}_{kind}.jsonl"
        with self._files.create(file_id, name, "batch_output", expires_after_s=self._expires_after_s) as output:
            output.write(first)
            for line in lines:
                output.write(line)
                count += 1
        return count

    def _answers(self) -> Iterator[bytes]:
        for table in self._job.tables(columns=["custom_id", "status", "value"]):
            for custom_id, value in _pairs(table.filter(pc.equal(table["status"], pa.scalar("ok"))), "value"):
                self.usage.add(usage_of_response(value))
                yield answered_line(self._batch_id, custom_id, value)

    def _failures(self) -> Iterator[bytes]:
        for table in self._job.tables(columns=["custom_id", "status", "error"]):
            for custom_id, error in _pairs(table.filter(pc.not_equal(table["status"], pa.scalar("ok"))), "error"):
                yield refused_line(self._batch_id, custom_id, error)

    def _lost(self, open_source: Callable[[], Source], lost: Lost) -> Iterator[bytes]:
        committed = [log.committed() for log in self._job.parts()]
        try:
            rows = open_source().rows()
            while some := list(islice(rows, LOOKUP_ROWS)):
                keys = id_keys(row.custom_id for row in some)
                found = [ids.lookup(keys) for ids in committed]
                for i, row in enumerate(some):
                    if any(part[i] is not None for part in found):
                        continue
                    if row.error is not None:
                        yield refused_line(self._batch_id, row.custom_id, row.error)
                    else:
                        yield lost_line(self._batch_id, row.custom_id, lost.code, lost.message)
        except BadSettings as error:  # the input was deleted: the answers still get their file
            logger.warning("%s: the rows without an answer cannot be listed: %s", self._batch_id, error)


def _pairs(table: pa.Table, column: str) -> Iterator[tuple[str, str]]:
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield from zip(batch["custom_id"].to_pylist(), batch[column].to_pylist(), strict=True)
