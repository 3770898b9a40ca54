"""How long an engine's steps take, and how many tokens of populations fit into one.

Knows times and tokens; does not know requests. A step of n tokens takes a + b·n: on a CPU of two cores some 12 ms and
0.9 ms a token, on a GPU the time to read the weights and some hundredths of a millisecond.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from serve_app.settings import SharingSettings

LEAST_TOKENS = 8
# Steps of these and of LEAST_TOKENS in turns tell the fixed part of a step.
PROBE_TOKENS = 32
# Weight that earlier measurements keep per step.
MEMORY = 0.97
# A step counts as at most so many expected times, or mean times where a short one's fixed part is not known yet.
OUTLIER = 4.0
# Largest share of a mean step that its fixed part is taken for.
MOST_FIXED = 0.99
# Least variance of steps' tokens, over their mean square, that tells a from b.
VARIANCE = 0.01
# A step of populations alone computes for at least so many times its fixed time: two thirds of the engine's rate.
LEAST_FIXED = 2.0


class StepClock:
    """How many tokens of a step take `max_step_s`; starts at `first`, at most `most`. None: no limit but `most`.

    a and b are fitted by least squares with weights that fall by MEMORY per step. On a busy machine a may dominate and
    shorter steps only cost throughput, so a step has at least the tokens that take as long as a. Per step the bound
    falls to a quarter or doubles at most.
    """

    def __init__(
        self, max_step_s: float | None, *, first: int, most: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        # None until steps of different lengths were seen.
        self.fixed_s: float | None = None
        self.token_s: float | None = None
        self.last_tokens = 0
        self._share = LEAST_TOKENS
        self._max_step_s = math.inf if max_step_s is None else max_step_s
        self._most = most
        self.tokens = most if max_step_s is None else min(first, most)
        self._now = now
        self._planned: dict[int, float] = {}
        self._last_done = -math.inf
        # Weighted sums of 1, n, t, n², n·t.
        self._sums = [0.0] * 5

    @property
    def running(self) -> bool:
        """Whether a step with tokens is planned and not done."""
        return bool(self._planned)

    def planned(self, step: object, tokens: int) -> None:
        if tokens:
            self._planned[id(step)] = self._now()

    def done(self, step: object, tokens: int) -> None:
        """The step is finished. One planned ahead begins when the one before is done."""
        now = self._now()
        began = max(self._planned.pop(id(step), now), self._last_done)
        self._last_done = now
        if tokens and now > began:
            self._learn(tokens, now - began)

    def _learn(self, tokens: int, seconds: float) -> None:
        self.last_tokens = tokens
        if self.token_s is not None:  # limits a step that the machine held up
            expected_s = max(self.expected_s(tokens), self._sums[2] / self._sums[0])
            seconds = min(seconds, OUTLIER * expected_s)
        seen = (1.0, tokens, seconds, tokens**2, tokens * seconds)
        self._sums = [MEMORY * total + one for total, one in zip(self._sums, seen, strict=True)]
        self.token_s = self._fit()
        fixed_s = self.fixed_s or 0.0
        fitting = max(self._max_step_s - fixed_s, fixed_s) / self.token_s
        bound = min(max(fitting, self.tokens / 4), 2 * self.tokens)
        if bound > self.tokens and tokens < self.tokens / 2:  # short steps say little of longer ones
            return
        self.tokens = int(min(max(bound, LEAST_TOKENS), self._most))

    def grant(self, part_s: float) -> int:
        """Tokens that take `part_s` beside what the step has: twice those of the last time at most, as what is learned
        on a machine that others use may be wrong by much.
        """
        right = int(part_s / self.token_s) if self.token_s else LEAST_TOKENS
        self._share = min(max(LEAST_TOKENS, right), 2 * self._share)
        return self._share

    def expected_s(self, tokens: int) -> float:
        return (self.fixed_s or 0.0) + (self.token_s or 0.0) * tokens

    def _fit(self) -> float:
        """Seconds per token, b, above 0; the fixed part, a, needs steps of different lengths."""
        weight, n, t, nn, nt = self._sums
        variance = weight * nn - n * n
        if variance > VARIANCE * nn * weight:
            slope = (weight * nt - n * t) / variance
            self.fixed_s = max(0.0, (t - slope * n) / weight) if slope > 0 else self.fixed_s
        if self.fixed_s is None:
            return t / n
        # Less than a mean step, so that tokens cost something.
        self.fixed_s = min(self.fixed_s, MOST_FIXED * t / weight)
        return (t - self.fixed_s * weight) / n


def tokens_beside(clock: StepClock, online_tokens: int, wait_s: float, *, ahead: int) -> int:
    """Population tokens in a step with `online_tokens` of running online requests.

    Another online request waits for `ahead` of these steps: together they take `wait_s` for populations at most, or as
    long as a step's fixed part, as less would not be noticed. A step becomes twice as long at most, so that running
    requests keep half of their speed.
    """
    if not wait_s:
        return 0
    if clock.fixed_s is None or clock.token_s is None:
        return _probe(clock)
    return clock.grant(min(max(wait_s, clock.fixed_s) / ahead, clock.expected_s(online_tokens)))


def tokens_between(clock: StepClock, sharing: SharingSettings, idle_s: float) -> int:
    """Population tokens in a step while no online request is open, `idle_s` after the last one.

    The next one waits for `online_wait_ms` at most, or longer in two cases: a step is never so short that its fixed
    part takes more than a third, and the bound grows with the pause until steps are whole after `standby_s`.
    """
    if clock.fixed_s is None or clock.token_s is None:
        return _probe(clock)
    whole_s = clock.expected_s(clock.tokens)
    grown_s = whole_s * idle_s / sharing.standby_s if sharing.standby_s else whole_s
    wait_s = max((sharing.online_wait_ms or 0.0) / 1000, grown_s)
    return min(clock.grant(max(wait_s - clock.fixed_s, LEAST_FIXED * clock.fixed_s)), clock.tokens)


def _probe(clock: StepClock) -> int:
    return PROBE_TOKENS if clock.last_tokens < PROBE_TOKENS else LEAST_TOKENS
