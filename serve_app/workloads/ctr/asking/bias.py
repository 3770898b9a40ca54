"""Position and wording bias of a model's answers, measured by swapped labels.

Let s be a click's log-odds for one person and frame. Swapping two equivalent frames should keep the probability; the
*bias before* is how far it moves, the mean over people of

    | σ(s_a) − σ(s_b) |                     (a, b: the two orders of a wording, or two wordings over both orders)

The part of s_a − s_b common to all people belongs to the frames. Half of its mean, d, is taken from a and added to b
(an offset in log-odds without gold labels: batch calibration, Zhou et al. 2024, arXiv:2309.17249). The *bias after* is
the same mean distance with σ(s_a − d) and σ(s_b + d), where d comes from the other half of the people, so that nobody's
own answer corrects it.

Predictions use the mean over frames (`predict_over`), which order cannot change: their bias of position is 0, and
*after* shows how much the averaged answers still differ.

Contextual calibration (Zhao et al. 2021, arXiv:2102.09690) would set an empty profile's click probability to 1/2, and
so remove the click-through rate itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from serve_app.workloads.ctr.asking.answers import Answer
from serve_app.workloads.ctr.asking.frames import Frame
from serve_app.workloads.ctr.asking.predict import log_odds

_Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SwapBias:
    """Mean absolute differences of click probabilities, and the mean offset 2·d in log-odds, a over b."""

    before: float
    after: float
    offset: float


@dataclass(frozen=True, slots=True)
class LabelBias:
    """`people` were answered in all frames; `wording` is None with one wording."""

    people: int
    position: SwapBias
    wording: SwapBias | None


def label_bias(answers: Sequence[Answer]) -> LabelBias | None:
    """None without swapped labels, or with fewer than two people answered in all frames."""
    frames = answers[0].question.frames if answers else ()
    if len(frames) < 2:
        return None
    scores = _scores(answers, frames)
    if len(scores) < 2:
        return None
    wordings = [
        [i for i, frame in enumerate(frames) if frame.wording == wording]
        for wording in dict.fromkeys(frame.wording for frame in frames)
    ]
    position = [swap_bias(scores[:, first], scores[:, second]) for first, second in wordings]
    balanced = [scores[:, both].mean(axis=1) for both in wordings]
    wording = [swap_bias(one, other) for one, other in combinations(balanced, 2)]
    return LabelBias(len(scores), _mean(position), _mean(wording) if wording else None)


def swap_bias(a: _Reals, b: _Reals) -> SwapBias:
    """Takes log-odds of the same people (at least two) in two frames; arrays of shape (people,)."""
    fold = np.arange(len(a)) % 2 == 0
    half = np.where(fold, (a - b)[~fold].mean(), (a - b)[fold].mean()) / 2
    return SwapBias(_distance(a, b), _distance(a - half, b + half), float((a - b).mean()))


def _distance(a: _Reals, b: _Reals) -> float:
    return float(np.abs(expit(a) - expit(b)).mean())


def _mean(biases: Sequence[SwapBias]) -> SwapBias:
    before, after, offset = (
        float(np.mean([getattr(bias, name) for bias in biases])) for name in ("before", "after", "offset")
    )
    return SwapBias(before, after, offset)


def _scores(answers: Sequence[Answer], frames: tuple[Frame, ...]) -> _Reals:
    """Log-odds, shape (people, frames), of people with a prediction."""
    answered = [answer.outcomes for answer in answers if answer.prediction.p_click is not None]
    scores = [
        [log_odds(outcome.value or {}, frame) for outcome, frame in zip(outcomes, frames, strict=True) if outcome]
        for outcomes in answered
    ]
    return np.array(scores, dtype=float).reshape(len(answered), len(frames))
