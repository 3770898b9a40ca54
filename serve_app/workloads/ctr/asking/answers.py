"""Joins people with their answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import pyarrow as pa

from serve_app.schema import Outcome
from serve_app.workloads.ctr.asking.explain import Explanation, read_explanation
from serve_app.workloads.ctr.asking.predict import Prediction, predict_over
from serve_app.workloads.ctr.asking.prompts import Question
from serve_app.workloads.ctr.people.columns import PREDICTION, PROVENANCE, WEIGHT
from serve_app.workloads.ctr.people.profiles import Profile


@dataclass(frozen=True)
class Answer:
    """A person and the outcomes of the person's rows; a missing outcome is None."""

    question: Question
    profile: Profile
    outcomes: tuple[Outcome | None, ...]

    @cached_property
    def prediction(self) -> Prediction:
        """Without a value unless all rows have good answers."""
        found = [outcome for outcome in self.outcomes if outcome is not None]
        if self.question.mode == "explain":
            return Prediction(self._explained.p_click if isinstance(self._explained, Explanation) else None, None)
        return predict_over(found, self.question.frames)

    @property
    def reasoning(self) -> str | None:
        return self._explained.reasoning if isinstance(self._explained, Explanation) else None

    @cached_property
    def _explained(self) -> Explanation | str:
        """The explanation in explain mode, or why there is none."""
        outcome = self.outcomes[0]
        if self.question.mode != "explain" or outcome is None or outcome.value is None:
            return ""
        try:
            return read_explanation(outcome.value["text"] or "")
        except ValueError as error:
            return f"{error}; it ended by '{outcome.value['finish_reason']}'"

    @property
    def provenance(self) -> dict[str, Any]:
        """The columns PROVENANCE. Over several rows: total tokens and milliseconds, most attempts, the worst status
        with its error, the first row's replica and hash. An unreadable answer makes its person `invalid`."""
        found = [outcome for outcome in self.outcomes if outcome is not None]
        if len(found) < len(self.outcomes):
            return {"status": "missing"}
        worst = next((outcome for outcome in found if outcome.status != "ok"), found[0])
        whole = {name: value for name, value in msgspec.structs.asdict(found[0]).items() if name in PROVENANCE}
        sums = ("prompt_tokens", "cached_tokens", "completion_tokens", "latency_ms")
        whole |= {name: sum(getattr(outcome, name) for outcome in found) for name in sums}
        whole |= {"status": worst.status, "error": worst.error, "attempts": max(o.attempts for o in found)}
        if self.question.mode == "explain" and worst.status == "ok" and isinstance(self._explained, str):
            whole |= {"status": "invalid", "error": self._explained}
        return whole


def read_answers(question: Question, profiles: Sequence[Profile], outcomes: Iterable[Outcome]) -> list[Answer]:
    """One answer per profile, in population order."""
    by_id = {outcome.custom_id: outcome for outcome in outcomes}
    return [
        Answer(question, profile, tuple(by_id.get(row_id) for row_id in question.row_ids(profile.id)))
        for profile in profiles
    ]


def table(answers: Sequence[Answer]) -> pa.Table:
    """The click table, one row per person: id, attributes, weight, prediction, provenance."""
    # Most attributes first, so that a person's missing value keeps its column.
    people = sorted((answer.profile.attributes for answer in answers), key=len, reverse=True)
    names = list(dict.fromkeys(name for attributes in people for name in attributes))
    columns: dict[str, Any] = {"id": pa.array([answer.profile.id for answer in answers], pa.string())}
    for name in names:
        columns[name] = _column([answer.profile.attributes.get(name) for answer in answers])
    columns[WEIGHT] = pa.array([answer.profile.weight for answer in answers], pa.float64())
    for name, kind in PREDICTION.items():
        owner = [answer if name == "reasoning" else answer.prediction for answer in answers]
        columns[name] = pa.array([getattr(one, name) for one in owner], kind)
    provenance = [answer.provenance for answer in answers]
    for name, kind in PROVENANCE.items():
        columns[name] = pa.array([known.get(name) for known in provenance], kind)
    return pa.table(columns)


def _column(values: list[Any]) -> Any:
    """A column of the values' type, or text if they have several."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
