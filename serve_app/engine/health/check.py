"""Checks whether an engine is dead, hung, slow or healthy.

A token costs a step of all ranks, so it asks for one only in doubt: probes every 5 s took much of the 0.7 cores of two
idle replicas.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import psutil

from serve_app.engine.health.watchdog import Watchdog
from serve_app.errors import EngineFailed

IDLE_PROBE_S = 60.0
# A check ends after this long without an answer, and the next goes on from there: Serve need not wait for one check as
# long as a step may take, and so soon finds a replica that answers none.
PATIENCE_S = 5.0
POLL_S = 0.2
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class HealthCheck:
    """Awaited every few seconds. `ask` generates a token, `busy` tells whether requests are open, `processes` are all
    that the engine started."""

    def __init__(
        self,
        watchdog: Watchdog,
        processes: Sequence[psutil.Process],
        *,
        ask: Callable[[], Awaitable[None]],
        busy: Callable[[], bool],
    ) -> None:
        self._watchdog = watchdog
        self._processes = processes
        self._ask = ask
        self._busy = busy
        self._checked_at = float("-inf")
        self._owes_since: float | None = None

    async def __call__(self) -> None:
        """Return if the engine makes progress. Raises EngineFailed if one of its processes is gone or it hangs."""
        states = [_state(process) for process in self._processes]
        if dead := [p.pid for p, state in zip(self._processes, states, strict=True) if state in ("", "zombie")]:
            raise EngineFailed(f"engine processes {dead} are gone")
        checked_at, self._checked_at = self._checked_at, time.monotonic()
        if self._watchdog.last_step >= checked_at:
            self._owes_since = None
            return
        idle = not self._busy() and not any(state in STOPPED for state in states)
        if idle and self._checked_at - self._watchdog.last_step < IDLE_PROBE_S:
            return
        await self._await_step()

    async def _await_step(self) -> None:
        asked = time.monotonic()
        owes_since = self._owes_since = asked if self._owes_since is None else self._owes_since
        probe = asyncio.ensure_future(self._ask())
        try:
            while not probe.done():
                await asyncio.wait([probe], timeout=POLL_S)
                self._watchdog.look()
                if self._watchdog.last_step >= asked:
                    break
                if reason := self._watchdog.hung(owes_since):
                    raise EngineFailed(reason)
                if time.monotonic() - asked > PATIENCE_S:
                    return
            else:
                probe.result()
                self._watchdog.step()  # disable_log_stats hides steps
            self._owes_since = None
        finally:
            probe.cancel()


def _state(process: psutil.Process) -> str:
    try:
        return str(process.status()) if process.is_running() else ""
    except psutil.Error:
        return ""
