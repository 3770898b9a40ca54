"""Turns committed outcomes into predictions and report figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from serve_app.schema import Outcome
from serve_app.workloads.ctr.asking.frames import YES_NO, Frame
from serve_app.workloads.ctr.statistics.estimate import rate_interval

# Least probability of a confident answer.
HIGH_CONFIDENCE = 0.8


@dataclass(frozen=True, slots=True)
class Prediction:
    """`p_click` is P(Yes) over P(Yes) + P(No); `label_mass` is that sum. Both, and `click`, are None for a row without
    an answer."""

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


def predict(outcome: Outcome, frame: Frame = YES_NO) -> Prediction:
    return predict_over([outcome], [frame])


def predict_over(outcomes: Sequence[Outcome], frames: Sequence[Frame]) -> Prediction:
    """One person's prediction from several frames: the mean log-odds.

    With both orders of a wording it is invariant to swapping them: their effects on log-odds cancel (balanced position
    calibration, Wang et al. 2024, arXiv:2305.17926, in log-odds, where a label's prior is a sum term, Zheng et al.
    2024, arXiv:2309.03882). The mass is the frames' mean. Without an answer in every frame there is no balanced
    prediction.
    """
    answered = [outcome.value for outcome in outcomes if outcome.status == "ok" and outcome.value is not None]
    if len(answered) < len(frames):
        return Prediction(None, None)
    odds = [log_odds(value, frame) for value, frame in zip(answered, frames, strict=True)]
    masses = [math.exp(value["logprobs"][label]) for value, f in zip(answered, frames, strict=True)
              for label in (f.click, f.ignore)]  # fmt: skip
    return Prediction(float(expit(math.fsum(odds) / len(odds))), math.fsum(masses) / len(frames))


def log_odds(value: dict[str, Any], frame: Frame) -> float:
    """Natural log-odds of a click from an outcome in that frame."""
    return float(value["logprobs"][frame.click] - value["logprobs"][frame.ignore])


@dataclass(frozen=True, slots=True)
class Rates:
    """Click-through over answered rows. `ctr` is the mean click probability with a 95 % interval."""

    answered: int
    expected_clicks: float
    clicks: int
    ctr: float | None
    ctr_low: float | None
    ctr_high: float | None
    high_confidence_share: float | None
    mean_label_mass: float | None


def rates(predictions: Sequence[Prediction]) -> Rates:
    """The interval (`rate_interval`) covers the random draw of people, not the model's error. None without answers;
    `mean_label_mass` is None without labels."""
    answered = [p for p in predictions if p.p_click is not None]
    chances = [p.p_click for p in answered if p.p_click is not None]
    if not chances:
        return Rates(0, 0.0, 0, None, None, None, None, None)
    mean = math.fsum(chances) / len(chances)
    found = rate_interval(np.array(chances))
    masses = [p.label_mass for p in answered if p.label_mass is not None]
    return Rates(
        answered=len(chances),
        expected_clicks=math.fsum(chances),
        clicks=sum(bool(p.click) for p in answered),
        ctr=mean,
        ctr_low=mean if found.low is None else found.low,
        ctr_high=mean if found.high is None else found.high,
        high_confidence_share=sum((p.confidence or 0) >= HIGH_CONFIDENCE for p in answered) / len(answered),
        mean_label_mass=math.fsum(masses) / len(masses) if masses else None,
    )
