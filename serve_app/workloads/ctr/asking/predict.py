"""From committed outcomes to predictions and the figures of the report."""

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


def predict(outcome: Outcome, frame: Frame = YES_NO) -> Prediction:
    """Read the two labels' exact log-probabilities."""
    return predict_over([outcome], [frame])


def predict_over(outcomes: Sequence[Outcome], frames: Sequence[Frame]) -> Prediction:
    """One person's prediction from the same question in several frames: the mean of their log-odds.

    Where both orders of a wording are among them, that is invariant to swapping them: what an order adds to a click's
    log-odds the other takes away (balanced position calibration, Wang et al. 2024, arXiv:2305.17926, in log-odds, where
    the prior of a label is a sum term, as Zheng et al. 2024, arXiv:2309.03882, have it). The mass is the frames' mean.
    A person without an answer in one of the frames has no prediction: it would not be balanced.
    """
    answered = [outcome.value for outcome in outcomes if outcome.status == "ok" and outcome.value is not None]
    if len(answered) < len(frames):
        return Prediction(None, None)
    odds = [log_odds(value, frame) for value, frame in zip(answered, frames, strict=True)]
    masses = [math.exp(value["logprobs"][label]) for value, f in zip(answered, frames, strict=True)
              for label in (f.click, f.ignore)]  # fmt: skip
    return Prediction(float(expit(math.fsum(odds) / len(odds))), math.fsum(masses) / len(frames))


def log_odds(value: dict[str, Any], frame: Frame) -> float:
    """Natural log-odds of a click, of an outcome's value in that frame."""
    return float(value["logprobs"][frame.click] - value["logprobs"][frame.ignore])


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
    """The interval is `rate_interval`'s over people drawn at random: it says how far another population of this size
    may differ, not how wrong the model may be. None where nothing was answered; `mean_label_mass` is None too where no
    labels were asked for."""
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
