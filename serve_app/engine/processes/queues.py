"""How vLLM's processes wait for each other's messages. A plug-in in each of them (pyproject.toml)."""

from __future__ import annotations

import time
from functools import partialmethod

# Longest sleep before looking for a message: while messages come, and later.
WAIT_MS, IDLE_WAIT_MS, IDLE_AFTER_S = 2, 100, 1.0


def wait_asleep() -> None:
    """Let vLLM's processes on a CPU host wait asleep for each other's messages.

    vLLM's own wait spins in `sched_yield` for a second before it sleeps, on the ranks' cores: beside workers with their
    own groups, each EngineCore took half a core.

    The writer's notice can be lost: the socket drops one that directly follows another (SNDHWM 1 in shm_broadcast.py,
    and a step has two messages), or that precedes the subscription. So sleeps are short: at up to 100 ms the time
    between two tokens sometimes rose from 50 to 140 ms.
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
