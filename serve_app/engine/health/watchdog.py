"""Tells an engine that is slow from one that hangs.

A finished step is a sign of life. So is processor time that all of the engine's workers use, or wait for: a step of a
large model on a slow or busy processor can take minutes. A rank that is stopped or waits for something that never comes
uses none, and the ranks beside it do not matter, though they may look for its message in a busy loop. As ranks have not
quite the same work, one may have been idle for as long as it worked in this step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

# Share of a core above which a process computes. Waiting workers and EngineCores look for messages now and then: 1 to
# 4 % of a slow core. A computing one uses or waits for all of a core.
WORKING_SHARE = 0.10
# Shorter windows say little: the kernel counts in scheduler ticks.
WINDOW_S = 1.0


class Watchdog:
    """`workers` are the PIDs of processes that all compute in each step, `core` the PID of the one that plans it.

    Without `workers` (on GPUs, whose waiting ranks use a core each) a step is the only sign of life.
    """

    def __init__(
        self,
        workers: Sequence[int] = (),
        core: int | None = None,
        *,
        stall_timeout_s: float,
        step_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        wanted_s: Callable[[int], float] | None = None,
    ) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._step_timeout_s = step_timeout_s
        self._clock = clock
        self._wanted_s = wanted_s or wanted_cpu_s
        self._workers = [_Process(pid) for pid in workers]
        self._core = _Process(core) if core is not None else None
        self.last_step = clock()
        self.look()

    def step(self) -> None:
        """The engine finished a step."""
        self.last_step = self._clock()

    def look(self) -> None:
        """Note which processes compute; to be called every few seconds while the engine has work."""
        now = self._clock()
        for process in (*self._workers, *([self._core] if self._core else [])):
            if now - process.looked_at >= WINDOW_S:
                process.note(now, self._wanted_s(process.pid))

    def working(self) -> bool:
        """Whether the engine's processes computed in the last window: all workers, or the one that plans steps."""
        workers = bool(self._workers) and all(process.working for process in self._workers)
        return workers or bool(self._core and self._core.working)

    def hung(self, since: float) -> str:
        """Why an engine that has had work since then counts as hung; empty as long as it does not."""
        now = self._clock()
        began = max(self.last_step, since)
        without_step = now - began
        if without_step > self._step_timeout_s:
            return f"the engine made no step in {without_step:.0f} s, beyond health.step_timeout_s"
        if not self._workers:
            return ""
        idle = min(self._workers, key=lambda process: process.worked_at)
        last_work = max(began, idle.worked_at, self._core.worked_at if self._core else began)
        if now - last_work <= max(self._stall_timeout_s, last_work - began):
            return ""
        return (
            f"the engine made no step in {without_step:.0f} s, and its worker {idle.pid} used no processor time: "
            "it hangs"
        )


class _Process:
    """What is known of a process: the processor time it wanted, and when it last computed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.looked_at = self.worked_at = float("-inf")
        self.working = False
        self._wanted_s = 0.0

    def note(self, now: float, wanted_s: float) -> None:
        first = self.looked_at == float("-inf")
        self.working = first or (wanted_s - self._wanted_s) / (now - self.looked_at) >= WORKING_SHARE
        if self.working:
            self.worked_at = now
        self.looked_at, self._wanted_s = now, wanted_s


def wanted_cpu_s(pid: int) -> float:
    """Seconds that the threads of a process have run or waited for a processor; 0 for one that is gone.

    Of /proc/PID/task/TID/schedstat (nanoseconds on the processor and on a run queue; Linux, sched-stats.rst), so that a
    process that others keep from running counts as computing. Where the kernel has no such figures, processor time.
    """
    total_ns = 0
    found = False
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):
                ran, waited, _ = map(int, (thread / "schedstat").read_text().split())
                total_ns += ran + waited
                found = True
    if found:
        return total_ns / 1e9
    import psutil

    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0
