"""vLLM's scheduler with online requests first and a bound on populations beside them.

vLLM's `priority` orders waiting requests only; running ones fill the step whatever their priority. A step of 4,096
population tokens lasts 3.6 s here, and an online request waits for the running and the planned step. So, while online
requests are open and for `online_linger_s` after:

    an online request waits   the step is for online requests alone
    none waits                running online requests go first; populations get `population_step_tokens` of the step
    in both                   … and an eighth of the engine's seats (max_num_seqs) is kept for those that come

For `standby_s` after that, population steps have `standby_step_tokens`, so the next burst waits for at most two of
those. Shorter steps cost populations some rate (here 256 tokens 12 %, 512 tokens 6 %, 1,024 tokens 2 %); without online
requests the steps are vLLM's own.

No step takes more tokens than the engine computes in `max_step_s` (`StepClock`): 4,096 tokens of the default model take
15 s on a processor without AVX512 beside a second replica.

Populations have a priority above 0; online requests and the health probe have 0 or less.

vLLM loads this in EngineCore's process. It bounds steps by `max_num_scheduled_tokens` and `max_num_active_reqs` of the
pinned version, and a request with a later `next_decode_eligible_step` is skipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from serve_app.settings import PROBE_PRIORITY, SHARING_KEY, SharingSettings

# Share of seats kept for coming online requests.
RESERVED_SHARE = 1 / 8
# A CPU's unmeasured steps: usually 0.2 s, bearable at a hundredth of that speed.
FIRST_TOKENS = 64
LEAST_TOKENS = 8
# Weight that earlier measurements keep per step.
MEMORY = 0.9
# A step counts as at most so many expected lengths.
OUTLIER = 4.0


class StepClock:
    """How many tokens of a step take `max_step_s`; starts at `first`, at most `most`.

    A step of n tokens takes a + b·n, by least squares with weights that fall by MEMORY per step. On a busy machine a
    may dominate and shorter steps only cost throughput, so a step has at least the tokens that take as long as a. Per
    step the bound falls to a quarter or doubles at most.
    """

    def __init__(self, max_step_s: float, *, first: int, most: int) -> None:
        self.tokens = min(first, most)
        self._max_step_s = max_step_s
        self._most = most
        self._planned: dict[int, float] = {}
        self._last_done = -math.inf
        # Weighted sums of 1, n, t, n², n·t.
        self._sums = [0.0] * 5
        self._fixed_s = 0.0
        self._token_s: float | None = None

    def planned(self, step: object) -> None:
        self._planned[id(step)] = time.monotonic()

    def done(self, step: object, tokens: int) -> None:
        """The step is finished. One planned ahead begins when the one before is done."""
        now = time.monotonic()
        began = max(self._planned.pop(id(step), now), self._last_done)
        self._last_done = now
        if tokens and now > began:
            self._learn(tokens, now - began)

    def _learn(self, tokens: int, seconds: float) -> None:
        if self._token_s is not None:  # limits a step that the machine held up
            seconds = min(seconds, OUTLIER * (self._fixed_s + self._token_s * tokens))
        seen = (1.0, tokens, seconds, tokens**2, tokens * seconds)
        self._sums = [MEMORY * total + one for total, one in zip(self._sums, seen, strict=True)]
        self._token_s = self._fit()
        fitting = max(self._max_step_s - self._fixed_s, self._fixed_s) / self._token_s
        bound = min(max(fitting, self.tokens / 4), 2 * self.tokens)
        if bound > self.tokens and tokens < self.tokens / 2:  # short steps say little of longer ones
            return
        self.tokens = int(min(max(bound, LEAST_TOKENS), self._most))

    def _fit(self) -> float:
        """Seconds per token, b, above 0; the fixed part, a, needs steps of different lengths."""
        weight, n, t, nn, nt = self._sums
        variance = weight * nn - n * n
        if variance > 0.01 * nn * weight:
            slope = (weight * nt - n * t) / variance
            self._fixed_s = max(0.0, (t - slope * n) / weight) if slope > 0 else self._fixed_s
        # At most nine tenths of a mean step, so that tokens cost something.
        self._fixed_s = min(self._fixed_s, 0.9 * t / weight)
        return (t - self._fixed_s * weight) / n


class OnlineFirst:
    """Mixed into vLLM's schedulers. Without the policy `priority` it only bounds steps' time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        scheduler: Any = self
        self._sharing = read_settings(scheduler.vllm_config.additional_config)
        self._online_until = self._standby_until = -math.inf
        # The last online-only step had nothing to run.
        self._blocked = False
        self._clock = make_clock(scheduler, self._sharing)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        scheduler: Any = self
        with limits(scheduler):
            if self._clock is not None:
                lower(scheduler, tokens=self._clock.tokens)
            step: Any = self._schedule(*args, **kwargs)
        if self._clock is not None:
            self._clock.planned(step)
        return step

    def update_from_output(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        if self._clock is not None:
            self._clock.done(step, step.total_num_scheduled_tokens)
        return super().update_from_output(step, *args, **kwargs)  # type: ignore[misc]

    def _schedule(self, *args: Any, **kwargs: Any) -> Any:
        scheduler: Any = self
        if self._sharing.population_step_tokens is None or scheduler.vllm_config.scheduler_config.policy != "priority":
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        urgent = takewhile(lambda request: request.priority <= 0, scheduler.waiting)
        waiting = [request for request in urgent if is_online(request)]
        running = [request for request in scheduler.running if is_online(request)]
        now = time.monotonic()
        if waiting or running:
            self._online_until = now + self._sharing.online_linger_s
            self._standby_until = now + self._sharing.standby_s
        alone = False
        if now <= self._online_until:
            alone = self._put_online_first(waiting, running)
        elif self._sharing.standby_step_tokens is not None and now <= self._standby_until:
            lower(scheduler, tokens=self._sharing.standby_step_tokens)
        step: Any = super().schedule(*args, **kwargs)  # type: ignore[misc]
        # It may wait for its grammar. Populations need not.
        self._blocked = alone and not step.total_num_scheduled_tokens
        return step

    def _put_online_first(self, waiting: list[Any], running: list[Any]) -> bool:
        """Set a step's limits while online requests are open; returns whether it is online-only."""
        scheduler: Any = self
        scheduler.running.sort(key=lambda request: not is_online(request))  # stable sort
        if waiting and not self._blocked and len(scheduler.running) < scheduler.max_num_active_reqs:
            for request in scheduler.running[len(running) :]:
                request.next_decode_eligible_step = scheduler.current_step + 2  # `schedule` adds one first
            lower(scheduler, seats=len(scheduler.running) + len(waiting))
            return True
        seats = scheduler.max_num_active_reqs
        share = sum(map(missing_tokens, running)) + (self._sharing.population_step_tokens or 0)
        lower(scheduler, tokens=share, seats=seats - max(1, int(seats * RESERVED_SHARE)))
        return False


class OnlineFirstScheduler(OnlineFirst, Scheduler):
    """For engines that plan after each step, such as embeddings."""


class OnlineFirstAsyncScheduler(OnlineFirst, AsyncScheduler):
    """For engines that plan a step ahead."""


@contextmanager
def limits(scheduler: Any) -> Iterator[None]:
    tokens, seats = scheduler.max_num_scheduled_tokens, scheduler.max_num_active_reqs
    try:
        yield
    finally:
        scheduler.max_num_scheduled_tokens, scheduler.max_num_active_reqs = tokens, seats


def lower(scheduler: Any, *, tokens: int | None = None, seats: int | None = None) -> None:
    if tokens is not None:
        scheduler.max_num_scheduled_tokens = min(scheduler.max_num_scheduled_tokens, tokens)
    if seats is not None:
        scheduler.max_num_active_reqs = min(scheduler.max_num_active_reqs, seats)


def make_clock(scheduler: Any, sharing: SharingSettings) -> StepClock | None:
    """None where steps may not be cut: without chunked prefill a prompt longer than a step never runs."""
    scheduling = scheduler.vllm_config.scheduler_config
    if sharing.max_step_s is None or not scheduling.enable_chunked_prefill or scheduling.disable_chunked_mm_input:
        return None
    most = scheduler.max_num_scheduled_tokens
    return StepClock(sharing.max_step_s, first=FIRST_TOKENS if current_platform.is_cpu() else most, most=most)


def is_online(request: Any) -> bool:
    """Whether populations give way to it. A health probe needs no priority over them."""
    return bool(PROBE_PRIORITY < request.priority <= 0)


def missing_tokens(request: Any) -> int:
    """Tokens a running request could take in the next step."""
    return int(request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens)


def read_settings(additional_config: Any) -> SharingSettings:
    """Settings left by `vllm.py`."""
    given = additional_config.get(SHARING_KEY) if isinstance(additional_config, Mapping) else None
    return SharingSettings.model_validate(given or {})
