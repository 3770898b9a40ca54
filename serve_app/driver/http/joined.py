"""Results beside their inputs: the data's own columns, in the data's order, then what was asked and answered.

Knows how a population and its outcomes go together. Does not know file formats (`results.py`).
"""

from __future__ import annotations

import math
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

BLOCK_ROWS = 1024
# JSON lines need not have the same columns: those of so many rows are looked at.
COLUMNS_SEEN = 1000


class JoinedResults:
    """A job's rows in the order of its data, each with its outcome, if it has one yet.

    Outcomes are committed about in the order of the data; those that come before their turn wait in memory. A row
    without an outcome has `status` null, and everything after it waits.

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
        inputs, outcomes = self._source.inputs(), self._job.outcomes()
        waiting: dict[str, Outcome] = {}
        while some := list(islice(inputs, BLOCK_ROWS)):
            yield [self._row(one, _find(one.row.custom_id, waiting, outcomes)) for one in some]

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


def _find(custom_id: str, waiting: dict[str, Outcome], outcomes: Iterator[Outcome]) -> Outcome | None:
    if (outcome := waiting.pop(custom_id, None)) is not None:
        return outcome
    for outcome in outcomes:
        if outcome.custom_id == custom_id:
            return outcome
        waiting[outcome.custom_id] = outcome
    return None


def _asked(row: Row) -> str | None:
    """What was asked: plain text, the one message of a chat, or its messages as JSON."""
    if row.error is not None or row.prompt is not None:
        return row.prompt
    if len(row.messages) == 1:
        return row.messages[0]["content"]
    return msgspec.json.encode(row.messages).decode()


def _cell(value: Any) -> str | None:
    return None if value is None else as_text(value)
