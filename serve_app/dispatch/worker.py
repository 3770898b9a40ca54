"""A replica's open calls and capacity."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.rows import QueuedRow
from serve_app.schema import ReplicaInfo

# Longest pause after failures; Serve replaces a replica sooner.
MAX_BACKOFF_S = 30.0
# One chunk tests whether a lost replica was only out of reach (ActorUnavailable, seconds), and after twice the time
# again. Serve removes a dead one after three failed checks, 5 s apart.
FIRST_LOST_PAUSE_S, LOST_PAUSE_S = 5.0, 60.0
# Additive increase, multiplicative decrease of the window (factors: AIBrix's batch gateway). A larger waiting share
# only delays others.
QUEUE_SHARE = 0.5
OVERLOADED, SLOW = 0.9, 0.8


# The unanswered rows of a chunk, by their place in it.
OpenRows = dict[int, QueuedRow]


@dataclass(slots=True, eq=False)
class Worker:
    """A replica and its open calls: `lost` until it answers, `reserved` for suspects, `alone` with one."""

    replica: ReplicaInfo
    window: float
    open_rows: int = 0
    failures: int = 0
    paused_until: float = 0.0
    left_at: float | None = None
    lost_at: float | None = None
    lost: bool = False
    reserved: bool = False
    alone: bool = False
    calls: dict[asyncio.Task[None], OpenRows] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        return self.left_at is None and not self.lost

    def has_room(self, now: float) -> bool:
        if self.left_at is not None or now < self.paused_until:
            return False
        if self.lost or self.reserved or self.alone:
            return not self.calls
        return self.open_rows < self.window

    def room_for(self, rows: int) -> int:
        """How many of `rows` the window takes now: at least half of them, or none."""
        room = int(self.window) - self.open_rows
        return min(rows, room) if room >= min(rows, self.window) / 2 else 0

    def adapt_window(self, finished: int, waiting: int, settings: DispatchSettings) -> None:
        """Grow the window while it limits, shrink it when the engine queues: once a chunk's worth of finished rows."""
        self.failures, self.lost_at = 0, None
        if waiting > self.window * QUEUE_SHARE:
            self.window = max(settings.chunk_rows, self.window * OVERLOADED ** (finished / settings.chunk_rows))
        elif waiting == 0 and self.open_rows >= self.window - settings.chunk_rows:
            self.window = min(settings.max_window_rows, self.window + finished)

    def back_off(self, now: float, settings: DispatchSettings) -> float:
        """Pause longer after each consecutive failure; returns seconds."""
        self.failures += 1
        self.window = max(settings.chunk_rows, self.window * SLOW)
        pause_s: float = min(settings.refresh_s * 2**self.failures, MAX_BACKOFF_S)
        if self.lost:
            self.lost_at = now if self.lost_at is None else self.lost_at
            pause_s = min(max(FIRST_LOST_PAUSE_S, now - self.lost_at), LOST_PAUSE_S)
        self.paused_until = now + pause_s
        return pause_s
