"""Results beside their inputs: the data's own columns, in the data's order, then what was asked and answered.

Knows how a population and its outcomes go together. Does not know file formats (`results.py`).
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec
import pyarrow as pa

from serve_app.addresses import PUBLIC, Reach
from serve_app.driver.sources.source import open_source
from serve_app.driver.sources.template import Input, as_text
from serve_app.driver.store.store import JobStore
from serve_app.errors import BadSettings
from serve_app.schema import Outcome, Row
from serve_app.spec import JobSpec

# Of a block: as many rows, or as many characters of their columns and prompts.
BLOCK_ROWS, BLOCK_CHARACTERS = 1024, 1 << 20
# JSON lines need not have the same columns: those of so many rows are looked at.
COLUMNS_SEEN = 1000


class JoinedResults:
    """A job's rows in the order of its data, each with its outcome, if it has one yet.

    Outcomes are committed about in the order of the data; those that come before their turn wait on disk. A row without
    an outcome has `status` null, and everything after it waits.

    Raises BadSettings for requests (their output file has both), and for data that cannot be read.
    """

    def __init__(self, job: JobStore, reach: Reach = PUBLIC) -> None:
        self._job = job
        self._spec = JobSpec.model_validate(job.spec())
        if self._spec.endpoint is not None:
            raise BadSettings("rows that are requests have no columns: leave it out", field="inputs")
        self._source = open_source(self._spec, folder_url=job.folder, reach=reach)
        seen = islice(self._source.inputs(), COLUMNS_SEEN)
        self._inputs = tuple(dict.fromkeys(name for one in seen for name in one.columns))
        taken = set(self._inputs)
        self._ours = {name: f"answer_{name}" if name in taken else name for name in self._answer_names()}

    @property
    def schema(self) -> pa.Schema:
        """The data's columns as text, then ours: with `answer_` before them where the data has one of that name."""
        types = dict.fromkeys(self._number_names(), pa.float64()) | {"simulated": pa.bool_()}
        ours = [pa.field(column, types.get(name, pa.string())) for name, column in self._ours.items()]
        return pa.schema([*(pa.field(name, pa.string()) for name in self._inputs), *ours])

    def rows(self) -> Iterator[list[dict[str, Any]]]:
        """Blocks of rows, by column."""
        outcomes = self._job.outcomes()
        block: list[dict[str, Any]] = []
        characters = 0
        with Waiting() as waiting:
            for one in self._source.inputs():
                block.append(self._row(one, _find(one.row.custom_id, waiting, outcomes)))
                characters += sum(len(cell) for cell in block[-1].values() if isinstance(cell, str))
                if len(block) >= BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
                    yield block
                    block, characters = [], 0
            if block:
                yield block

    def _row(self, one: Input, outcome: Outcome | None) -> dict[str, Any]:
        columns = {name: _cell(one.columns.get(name)) for name in self._inputs}
        answer = self._answer(one.row, outcome)
        return columns | {self._ours[name]: value for name, value in answer.items()}

    def _answer_names(self) -> tuple[str, ...]:
        value = ("label", *self._number_names()) if self._spec.labels else ("text", "finish_reason")
        return ("custom_id", "prompt", *value, "status", "error", "model", "simulated")

    def _number_names(self) -> tuple[str, ...]:
        labels = self._spec.labels
        if not labels:
            return ()
        return (*(f"p_{label}" for label in labels), *(f"logprob_{label}" for label in labels), "mass")

    def _answer(self, row: Row, outcome: Outcome | None) -> dict[str, Any]:
        known: dict[str, Any] = {"custom_id": row.custom_id, "prompt": _asked(row)}
        if outcome is None:
            return dict.fromkeys(self._ours) | known
        known |= {name: getattr(outcome, name) for name in ("status", "error", "model", "simulated")}
        value = outcome.value or {}
        if self._spec.labels:
            return known | self._scores(value)
        return known | {name: value.get(name) for name in ("text", "finish_reason")}

    def _scores(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The most likely label, and each label's share of the probability that all labels have."""
        logprobs: Mapping[str, float] = value.get("logprobs") or {}
        if not logprobs:
            return dict.fromkeys(("label", *self._number_names()))
        highest = max(logprobs.values())
        weights = {label: math.exp(logprob - highest) for label, logprob in logprobs.items()}
        total = math.fsum(weights.values())
        return {
            "label": max(logprobs, key=logprobs.__getitem__),
            **{f"p_{label}": weight / total for label, weight in weights.items()},
            **{f"logprob_{label}": logprob for label, logprob in logprobs.items()},
            "mass": value.get("mass"),
        }


def _find(custom_id: str, waiting: Waiting, outcomes: Iterator[Outcome]) -> Outcome | None:
    if (outcome := waiting.pop(custom_id)) is not None:
        return outcome
    for outcome in outcomes:
        if outcome.custom_id == custom_id:
            return outcome
        waiting.add(outcome)
    return None


class Waiting:
    """Outcomes by custom_id, any number of them: SQLite keeps a few MB in memory and the rest in a temporary file,
    which goes with the connection."""

    def __enter__(self) -> Waiting:
        # Each block is made in another thread, one at a time.
        self._rows = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("CREATE TABLE waiting (custom_id BLOB PRIMARY KEY, outcome BLOB) WITHOUT ROWID")
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def add(self, outcome: Outcome) -> None:
        row = (_key(outcome.custom_id), _pack(outcome))
        self._rows.execute("INSERT OR REPLACE INTO waiting VALUES (?, ?)", row)

    def pop(self, custom_id: str) -> Outcome | None:
        """The outcome, which waits no longer."""
        sql = "DELETE FROM waiting WHERE custom_id = ? RETURNING outcome"
        found = self._rows.execute(sql, (_key(custom_id),)).fetchall()
        return _unpack(found[0][0]) if found else None


def _key(custom_id: str) -> bytes:
    return custom_id.encode("utf-8", "surrogatepass")


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Outcome).decode


def _asked(row: Row) -> str | None:
    """What was asked: plain text, the one message of a chat, or its messages as JSON."""
    if row.error is not None or row.prompt is not None:
        return row.prompt
    if len(row.messages) == 1:
        return row.messages[0]["content"]
    return msgspec.json.encode(row.messages).decode()


def _cell(value: Any) -> str | None:
    return None if value is None else as_text(value)
