"""A replica as dispatch sees it: what is open on it, and how much it may take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.rows import QueuedRow
from serve_app.schema import ReplicaInfo

# Longest pause of a replica after failures. Serve replaces one that is really lost well within it.
MAX_BACKOFF_S = 30.0
# One that died may stay on the pool's list: Serve takes it off after three failed checks, 5 s apart. Longer than this
# says that it may have recovered, or that nobody could take it off: it gets one chunk, to see.
LOST_PAUSE_S = 60.0
# Additive increase, multiplicative decrease of a replica's window, by the engine's queue (factors: AIBrix's batch
# gateway). More than this share of the window waiting in the engine is a queue that only delays others.
QUEUE_SHARE = 0.5
OVERLOADED, SLOW = 0.9, 0.8


@dataclass(slots=True, eq=False)
class Worker:
    """A replica and what is open on it.

    `lost` since it died, until it answers again. `reserved` for suspects, of which it runs one while `alone`.
    """

    replica: ReplicaInfo
    window: float
    open_rows: int = 0
    failures: int = 0
    paused_until: float = 0.0
    left_at: float | None = None
    lost: bool = False
    reserved: bool = False
    alone: bool = False
    rows_done: int = 0
    calls: dict[asyncio.Task[None], Sequence[QueuedRow]] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        """Whether it is there and alive, as far as is known."""
        return self.left_at is None and not self.lost

    def room(self, now: float) -> bool:
        """Whether it takes another chunk now."""
        if self.left_at is not None or now < self.paused_until:
            return False
        if self.lost or self.reserved or self.alone:
            return not self.calls
        return self.open_rows < self.window

    def adapt(self, waiting: int, settings: DispatchSettings) -> None:
        """Grow the window while the engine asks for more, shrink it when our rows only stand in its queue."""
        self.failures = 0
        if waiting > self.window * QUEUE_SHARE:
            self.window = max(settings.chunk_rows, self.window * OVERLOADED)
        elif waiting == 0 and self.open_rows >= self.window - settings.chunk_rows:  # the window is what limits
            self.window = min(settings.max_window_rows, self.window + settings.chunk_rows)

    def back_off(self, now: float, settings: DispatchSettings) -> float:
        """Pause it, longer at each failure in a row, or as dead; the pause in seconds."""
        self.failures += 1
        self.window = max(settings.chunk_rows, self.window * SLOW)
        pause_s = LOST_PAUSE_S if self.lost else min(settings.refresh_s * 2**self.failures, MAX_BACKOFF_S)
        self.paused_until = now + pause_s
        return pause_s
