"""How vLLM's processes wait for each other's messages. Loaded in every one of them, as a plug-in (pyproject.toml)."""

from __future__ import annotations

import time
from functools import partialmethod

# How long they sleep at most before they look for a message themselves, while messages come and later.
WAIT_MS, IDLE_WAIT_MS, IDLE_AFTER_S = 2, 100, 1.0


def wait_asleep() -> None:
    """Let vLLM's processes on a CPU host wait asleep for each other's messages.

    vLLM's own wait goes round in `sched_yield` for a second before it sleeps until the writer's notice, on the cores
    that the ranks compute on: beside workers with groups of their own, each EngineCore took half a core.

    A notice can be lost, as its socket drops one that follows another at once (SNDHWM 1 in shm_broadcast.py, and two
    messages make a step) or that comes before the reader's subscription. So nobody sleeps for long: with up to 100 ms
    the time between two tokens rose from 50 to 140 ms now and then.
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
