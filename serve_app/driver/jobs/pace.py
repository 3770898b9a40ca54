"""How long a job still takes, from when its rows were committed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

# The pace is that of the later half of the run, or of so many seconds: replicas come and go.
LEAST_S = 30.0


class Pace:
    """The pace of one run, between its commits: what passed before the first one, a start say, is not in it."""

    def __init__(self, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`done` rows have an outcome from former runs."""
        self._clock = clock
        self._began = clock()
        self._done = done
        self._commits: deque[tuple[float, int]] = deque()  # (time, rows done)

    def observe(self, done: int) -> None:
        """Note how many rows have an outcome now. To be called about once a second."""
        if done <= self._done:
            return
        now = self._clock()
        self._done = done
        self._commits.append((now, done))
        window_s = max(LEAST_S, (now - self._began) / 2)
        while len(self._commits) > 2 and self._commits[1][0] <= now - window_s:
            self._commits.popleft()

    def eta_s(self, left: int) -> float | None:
        """Seconds until `left` more rows are done; None before the second commit."""
        if len(self._commits) < 2:
            return None
        (first_s, first), (last_s, last) = self._commits[0], self._commits[-1]
        since_s, every_s = self._clock() - last_s, (last_s - first_s) / (len(self._commits) - 1)
        late_s = max(0.0, since_s - 2 * every_s)  # a stall slows the pace
        return max(0.0, left * (last_s - first_s + late_s) / (last - first) - (since_s - late_s))
