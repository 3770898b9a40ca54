"""Tells a slow engine from a hung one.

Signs of life are a finished step, and processor time that all workers use or wait for, since a large model's step can
take minutes on a busy processor. A stopped or blocked rank uses none, while other ranks may poll for its message.
Ranks' work differs, so a rank may be idle as long as it worked in this step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

# Share of a core. Waiting processes poll with 1 to 4 % of a slow core; computing ones use or wait for a whole one.
WORKING_SHARE = 0.10
# The kernel counts scheduler ticks; shorter windows are too coarse.
WINDOW_S = 1.0


class Watchdog:
    """`workers` are the PIDs that compute each step, `core` the one that plans it. Without `workers` (waiting GPU ranks
    use a core each) only steps are signs of life.
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
        self.last_step = self._clock()

    def look(self) -> None:
        """Note which processes compute; call every few seconds during work."""
        now = self._clock()
        for process in (*self._workers, *([self._core] if self._core else [])):
            if now - process.looked_at >= WINDOW_S:
                process.note(now, self._wanted_s(process.pid))

    def hung(self, since: float) -> str:
        """Why an engine with work since then is hung, else empty."""
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
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.looked_at = self.worked_at = float("-inf")
        self._wanted_s = 0.0

    def note(self, now: float, wanted_s: float) -> None:
        first = self.looked_at == float("-inf")
        if first or (wanted_s - self._wanted_s) / (now - self.looked_at) >= WORKING_SHARE:
            self.worked_at = now
        self.looked_at, self._wanted_s = now, wanted_s


def wanted_cpu_s(pid: int) -> float:
    """Seconds that a process's threads ran or waited for a processor; 0 if gone.

    From /proc/PID/task/TID/schedstat (nanoseconds running and queued; Linux, sched-stats.rst), so that a starved
    process counts as computing. Without it, processor time.
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
