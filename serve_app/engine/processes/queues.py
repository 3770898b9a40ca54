"""Plug-in (pyproject.toml): how vLLM's processes wait for messages."""

from __future__ import annotations

import time
from functools import partialmethod

# Longest sleep during messages, and later.
WAIT_MS, IDLE_WAIT_MS, IDLE_AFTER_S = 2, 100, 1.0


def wait_asleep() -> None:
    """Make vLLM's processes on a CPU host sleep while they wait for messages.

    vLLM first spins in `sched_yield` for a second, which took half a core per EngineCore beside workers with their own
    groups.

    The socket may drop a notice that directly follows another (SNDHWM 1 in shm_broadcast.py; a step has two messages)
    or precedes the subscription. Sleeps are therefore short: up to 100 ms sometimes raised the time between tokens from
    50 to 140 ms.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    until_notice = SpinCondition.wait

    def wait(self: SpinCondition, timeout_ms: int | None = None) -> None:
        longest = WAIT_MS if time.monotonic() < self.last_read + IDLE_AFTER_S else IDLE_WAIT_MS
        until_notice(self, longest if timeout_ms is None else min(timeout_ms, longest))

    SpinCondition.__init__ = partialmethod(SpinCondition.__init__, busy_loop_s=0.0)
    SpinCondition.wait = wait
