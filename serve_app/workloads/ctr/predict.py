"""From committed outcomes to predictions and the figures of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import pyarrow as pa
from scipy import stats

from serve_app.schema import Outcome
from serve_app.workloads.ctr.profiles import Profile
from serve_app.workloads.ctr.prompts import NO, YES

# A prediction counts as confident when one answer has at least this probability.
HIGH_CONFIDENCE = 0.8


@dataclass(frozen=True, slots=True)
class Prediction:
    """`p_click` is P(Yes) over P(Yes) + P(No); `label_mass` is that sum, the share of the model's belief in the two
    labels at all. Both are None, and so is `click`, for a row that has no answer."""

    p_click: float | None
    label_mass: float | None

    @property
    def click(self) -> bool | None:
        """The more probable answer."""
        return None if self.p_click is None else self.p_click >= 0.5

    @property
    def confidence(self) -> float | None:
        """Probability of the more probable answer."""
        return None if self.p_click is None else max(self.p_click, 1 - self.p_click)


def predict(outcome: Outcome) -> Prediction:
    """Read the two labels' exact log-probabilities."""
    if outcome.status != "ok" or outcome.value is None:
        return Prediction(None, None)
    logprobs = outcome.value["logprobs"]
    yes, no = math.exp(logprobs[YES]), math.exp(logprobs[NO])
    return Prediction(yes / (yes + no), yes + no)


def table(profiles: Sequence[Profile], outcomes: Iterable[Outcome]) -> pa.Table:
    """One row a profile, in the population's order: its columns, `click`, and where the prediction came from."""
    by_id = {outcome.custom_id: outcome for outcome in outcomes}
    records = []
    for profile in profiles:
        outcome = by_id.get(profile.id)
        prediction = predict(outcome) if outcome else Prediction(None, None)
        provenance = msgspec.structs.asdict(outcome) if outcome else {"status": "missing"}
        provenance.pop("custom_id", None)
        provenance.pop("value", None)
        records.append(
            {
                **asdict(profile),
                "click": prediction.click,
                "p_click": prediction.p_click,
                "confidence": prediction.confidence,
                "label_mass": prediction.label_mass,
                **provenance,
            }
        )
    return pa.Table.from_pylist(records, schema=SCHEMA)


_TEXT, _COUNT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_COLUMNS: dict[str, pa.DataType] = {
    "id": _TEXT,
    "gender": _TEXT,
    "age": _COUNT,
    "region": _TEXT,
    "occupation": _TEXT,
    "annual_salary": _TEXT,
    "liability_status": _TEXT,
    "is_married": _FLAG,
    "health_status": _FLAG,
    "illness": _TEXT,
    "click": _FLAG,
    "p_click": _REAL,
    "confidence": _REAL,
    "label_mass": _REAL,
    "status": _TEXT,
    "content_hash": _TEXT,
    "error": _TEXT,
    "attempts": _COUNT,
    "replica": _TEXT,
    "model": _TEXT,
    "engine_version": _TEXT,
    "simulated": _FLAG,
    "prompt_tokens": _COUNT,
    "cached_tokens": _COUNT,
    "completion_tokens": _COUNT,
    "latency_ms": _REAL,
    "finished_at": _TEXT,
}
SCHEMA = pa.schema(_COLUMNS)


@dataclass(frozen=True, slots=True)
class Rates:
    """Click-through over the answered rows. `ctr` is the mean probability of a click, with a 95 % interval."""

    answered: int
    expected_clicks: float
    clicks: int
    ctr: float | None
    ctr_low: float | None
    ctr_high: float | None
    high_confidence_share: float | None
    mean_label_mass: float | None


def rates(predictions: Sequence[Prediction]) -> Rates:
    """The interval is Student's t for the mean over people drawn at random: it says how far another population
    of this size may differ, not how wrong the model may be. None where nothing was answered."""
    answered = [p for p in predictions if p.p_click is not None]
    chances = [p.p_click for p in answered if p.p_click is not None]
    if not chances:
        return Rates(0, 0.0, 0, None, None, None, None, None)
    mean = math.fsum(chances) / len(chances)
    low, high = mean, mean
    if len(chances) > 1:
        error = float(stats.sem(chances))
        if error > 0:
            low, high = (float(x) for x in stats.t.interval(0.95, len(chances) - 1, loc=mean, scale=error))
    return Rates(
        answered=len(chances),
        expected_clicks=math.fsum(chances),
        clicks=sum(bool(p.click) for p in answered),
        ctr=mean,
        ctr_low=max(0.0, low),
        ctr_high=min(1.0, high),
        high_confidence_share=sum((p.confidence or 0) >= HIGH_CONFIDENCE for p in answered) / len(answered),
        mean_label_mass=math.fsum(p.label_mass or 0 for p in answered) / len(answered),
    )


def cost(run_s: float, replicas: int, price_per_replica_hour: float, rows: int) -> dict[str, Any]:
    """Dollars for the replicas' time: hours · replicas · price, and the same for 1,000 rows."""
    total = run_s / 3600 * replicas * price_per_replica_hour
    return {"cost": total, "cost_per_1000": total / rows * 1000 if rows else None}
