"""vLLM's scheduler with online requests first and a bound on populations beside them, in milliseconds.

vLLM's `priority` orders waiting requests only; running ones fill the step whatever their priority. A step of 4,096
population tokens lasts 3.6 s on two cores, and an online request waits for the running and the planned step. So the
scheduler learns how long its steps take (`steps.py`), and an online request waits for populations for about
`online_wait_ms`, on any machine:

    an online request waits   the step is for online requests alone
    some run                  they go first; populations get the tokens that take half of that time, as two steps may
                              be under way, or as long as the online part of the step; an eighth of the engine's seats
                              (max_num_seqs) is kept for those that come
    none is open              populations get steps of that time, none planned ahead; the time grows until steps are
                              vLLM's own again, `standby_s` after the last online request

No step takes more tokens than the engine computes in `max_step_s`: 4,096 tokens of the default model take 15 s on a
processor without AVX512 beside a second replica.

Populations have a priority above 0; online requests and the health probe have 0 or less.

vLLM loads this in EngineCore's process. It bounds steps by `max_num_scheduled_tokens` and `max_num_active_reqs` of the
pinned version, and a request with a later `next_decode_eligible_step` is skipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from serve_app.engine.steps import StepClock, tokens_beside, tokens_between
from serve_app.settings import PROBE_PRIORITY, SHARING_KEY, SharingSettings

# Share of seats kept for coming online requests.
RESERVED_SHARE = 1 / 8
# A CPU's unmeasured steps: usually 0.2 s, bearable at a hundredth of that speed.
FIRST_TOKENS = 64


class OnlineFirst:
    """Mixed into vLLM's schedulers. Without the policy `priority` it only bounds steps' time."""

    # Steps that may be under way when an online request comes.
    ahead = 1
    now: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        scheduler: Any = self
        self._sharing = read_settings(scheduler.vllm_config.additional_config)
        self._last_online = -math.inf
        # The last online-only step had nothing to run.
        self._blocked = False
        self._clock = make_clock(scheduler, self._sharing, self.now)
        # An empty plan leaves a pipeline's stage idle, and has engines in step with each other compute a dummy.
        parallel = scheduler.vllm_config.parallel_config
        self._may_wait = parallel.pipeline_parallel_size == parallel.data_parallel_size == 1

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        scheduler: Any = self
        with limits(scheduler):
            if self._clock is not None:
                lower(scheduler, tokens=self._clock.tokens)
            step: Any = self._schedule(*args, **kwargs)
        if self._clock is not None:
            self._clock.planned(step, step.total_num_scheduled_tokens)
        return step

    def update_from_output(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        if self._clock is not None:
            self._clock.done(step, step.total_num_scheduled_tokens)
        return super().update_from_output(step, *args, **kwargs)  # type: ignore[misc]

    def _schedule(self, *args: Any, **kwargs: Any) -> Any:
        scheduler: Any = self
        if self._sharing.online_wait_ms is None or scheduler.vllm_config.scheduler_config.policy != "priority":
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        urgent = takewhile(lambda request: request.priority <= 0, scheduler.waiting)
        waiting = [request for request in urgent if is_online(request)]
        running = [request for request in scheduler.running if is_online(request)]
        now = self.now()
        alone = False
        if waiting or running:
            self._last_online = now
            alone = self._put_online_first(waiting, running)
        elif self._clock is not None and now - self._last_online < self._sharing.standby_s:
            # One planned ahead would be waited for as well.
            wait = self._may_wait and self._clock.running
            idle_s = now - self._last_online
            lower(scheduler, tokens=0 if wait else tokens_between(self._clock, self._sharing, idle_s))
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
        lower(scheduler, seats=seats - max(1, int(seats * RESERVED_SHARE)))
        if self._clock is not None:
            wait_s = (self._sharing.online_wait_ms or 0.0) / 1000
            online = sum(map(missing_tokens, running))
            lower(scheduler, tokens=online + tokens_beside(self._clock, online, wait_s, ahead=self.ahead))
        return False


class OnlineFirstScheduler(OnlineFirst, Scheduler):
    """For engines that plan after each step, such as embeddings."""


class OnlineFirstAsyncScheduler(OnlineFirst, AsyncScheduler):
    """For engines that plan a step ahead."""

    ahead = 2


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


def make_clock(scheduler: Any, sharing: SharingSettings, now: Callable[[], float]) -> StepClock | None:
    """None where steps may not be cut: without chunked prefill a prompt longer than a step never runs."""
    scheduling = scheduler.vllm_config.scheduler_config
    if not scheduling.enable_chunked_prefill or scheduling.disable_chunked_mm_input:
        return None
    most = scheduler.max_num_scheduled_tokens
    first = FIRST_TOKENS if current_platform.is_cpu() else most
    return StepClock(sharing.max_step_s, first=first, most=most, now=now)


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
