"""Requests and tokens per minute of each key: usage and remainder.

Requests are tested before they run; tokens are charged at their end, when known. A key may thus exceed its tokens by
its open requests, and then waits longer. Of HTTP it knows OpenAI's header names.

The sliding window is our own. Libraries (limits 5.8, throttled-py 3.5, pyrate-limiter 4.5) decide and charge in one
step, and charge no refusals. Only their fixed windows count beyond the limit, and those admit twice the limit around a
minute's edge.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec

WINDOW_S = 60
# Width of a count: 61 slots per key; units return at most this late.
SLOT_S = 1


class Quota(msgspec.Struct, frozen=True):
    """The rest of a limit, and seconds until it is whole."""

    limit: int
    remaining: int
    reset_s: float


class Standing(msgspec.Struct, frozen=True):
    """The result of asking for admission. Ask again after `wait_s`."""

    refused_by: Literal["requests", "tokens"] | None = None
    wait_s: float = 0.0
    requests: Quota | None = None
    tokens: Quota | None = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """In OpenAI's form."""
        headers = []
        for kind, quota in (("requests", self.requests), ("tokens", self.tokens)):
            if quota is not None:
                headers += [
                    (f"x-ratelimit-limit-{kind}".encode(), b"%d" % quota.limit),
                    (f"x-ratelimit-remaining-{kind}".encode(), b"%d" % quota.remaining),
                    (f"x-ratelimit-reset-{kind}".encode(), duration(quota.reset_s).encode()),
                ]
        return headers


class Window:
    """A sum over the last minute. Waiting `wait_s` never exceeds the limit in any 60 seconds."""

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()  # [second, amount], oldest first
        self._used = 0

    def add(self, amount: int, now: float) -> None:
        second = int(now // SLOT_S) * SLOT_S
        if not self._slots or self._slots[-1][0] != second:
            self._slots.append([second, 0])
        self._slots[-1][1] += amount
        self._used += amount

    def used(self, now: float) -> int:
        while self._slots and _end_s(self._slots[0]) <= now:
            self._used -= self._slots.popleft()[1]
        return self._used

    def wait_s(self, limit: int, now: float) -> float:
        """Seconds until usage is below `limit`."""
        left, end_s = self.used(now), now
        for slot in self._slots:
            if left < limit:
                break
            left, end_s = left - slot[1], _end_s(slot)
        return end_s - now

    def quota(self, limit: int, now: float) -> Quota:
        used = self.used(now)
        return Quota(limit, max(0, limit - used), _end_s(self._slots[-1]) - now if self._slots else 0.0)


def _end_s(slot: list[int]) -> float:
    # The slot may count its last moment.
    return slot[0] + SLOT_S + WINDOW_S


class Counters:
    """All keys' windows. Synchronous: calls take microseconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str], Window] = {}

    def admit(self, name: str, requests_per_minute: int | None, tokens_per_minute: int | None) -> Standing:
        """Count one request unless a window is full. None means no limit."""
        now = self._clock()
        requests, tokens = self._window(name, "requests"), self._window(name, "tokens")
        waits_s = {
            "requests": 0.0 if requests_per_minute is None else requests.wait_s(requests_per_minute, now),
            "tokens": 0.0 if tokens_per_minute is None else tokens.wait_s(tokens_per_minute, now),
        }
        refused_by: Any = max(waits_s, key=lambda kind: waits_s[kind]) if any(waits_s.values()) else None
        if refused_by is None:
            requests.add(1, now)
        return Standing(
            refused_by,
            waits_s.get(refused_by, 0.0),
            None if requests_per_minute is None else requests.quota(requests_per_minute, now),
            None if tokens_per_minute is None else tokens.quota(tokens_per_minute, now),
        )

    def charge(self, name: str, tokens: int) -> None:
        """Also counts beyond the limit."""
        self._window(name, "tokens").add(tokens, self._clock())

    def _window(self, name: str, kind: str) -> Window:
        window = self._windows.get((name, kind))
        if window is None:
            window = self._windows[name, kind] = Window()
        return window


def duration(seconds: float) -> str:
    """OpenAI's format: 120ms, 1.5s, 1m2s."""
    milliseconds = round(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
