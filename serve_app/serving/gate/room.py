"""Room at one replica: how many requests, how many bytes of them, and how many seconds of work may wait.

A request waits until its first token. What waits now, over the rate at which the engine began requests lately, is how
long a new one would wait. The rate is taken only while many wait: then the engine is the bottleneck, and whatever it
works at (long prompts, full batches, a population beside) is in it. Until it is known, requests are let in. Requests
that the engine never gets (refused, /tokenize) say nothing of it.

When something is full, a key that holds less than its share still gets in, so one cannot keep the others out.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from serve_app.serving.gate import refusal as say
from serve_app.serving.gate.refusal import Refusal
from serve_app.settings import AccessSettings

# As many may always wait: with fewer, one step may start all of them.
DEEP = 8
# What was seen counts for 1/e after this time.
MEMORY_S = 30.0
# Time with many waiting after which a rate is believed: meanwhile all are let in. A CPU's step takes a second at most.
LEAST_SEEN_S = 1.0
# OpenAI's clients obey a Retry-After of up to a minute.
MOST_WAIT_S = 60.0
# Retry-After while the rate is unknown.
UNKNOWN_WAIT_S = 1.0
# Share of `max_inflight_requests` that one key leaves to others.
LEFT_SHARE = 1 / 8


class Drain:
    """Requests that the engine has not begun, and how fast it begins them while many wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._waiting = 0
        self._clock = clock
        self._seen_at = clock()
        self._seen_s = self._started = 0.0

    def add(self, requests: int) -> None:
        self._pass_time()
        self._waiting += requests

    def remove(self, requests: int, *, started: bool) -> None:
        self._pass_time()
        if started and self._waiting >= DEEP:
            self._started += requests
        self._waiting -= requests

    def seconds_a_request(self) -> float | None:
        """None while it is unknown, infinite while nothing is begun."""
        self._pass_time()
        if self._seen_s < LEAST_SEEN_S:
            return None
        return self._seen_s / self._started if self._started else math.inf

    def _pass_time(self) -> None:
        now = self._clock()
        passed_s, self._seen_at = now - self._seen_at, now
        kept = math.exp(-passed_s / MEMORY_S)
        self._started *= kept
        self._seen_s *= kept
        if self._waiting >= DEEP:
            self._seen_s += passed_s


class Room:
    """Who is in, and who waits. `caller` is a key's name, "" without keys."""

    def __init__(self, settings: AccessSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._inside: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._bytes = 0
        self.drain = Drain(clock)

    def enter(self, caller: str, body_bytes: int) -> Place | Refusal:
        """A place, to be left, or why there is none. `body_bytes` is the announced size, 0 if it is not."""
        refusal = self._refuse_request(caller) or self._refuse_wait(caller) or self._refuse_bytes(body_bytes)
        if refusal is not None:
            return refusal
        self._inside[caller] += 1
        self.wait(caller, 1)
        return Place(self, caller)

    def _refuse_request(self, caller: str) -> Refusal | None:
        most = self._settings.max_inflight_requests
        if most is None:
            return None
        free_to_all = most - (int(most * LEFT_SHARE) if caller else 0)
        if self._inside.total() < most and has_room(caller, self._inside, free_to_all):
            return None
        return say.overloaded(most, self._retry_s())

    def _refuse_wait(self, caller: str) -> Refusal | None:
        most_s, each_s = self._settings.max_queue_s, self.drain.seconds_a_request()
        if most_s is None or each_s is None or has_room(caller, self._waiting, max(DEEP, most_s / each_s)):
            return None
        return say.queue_full(most_s, self._retry_s())

    def _refuse_bytes(self, body_bytes: int) -> Refusal | None:
        """Beside others only: one body has a limit of its own."""
        most = self._settings.max_inflight_bytes
        if most is None or not self._bytes or self._bytes + body_bytes <= most:
            return None
        return say.too_many_bytes(most, self._retry_s())

    def _retry_s(self) -> float:
        """When those that wait now will have been begun."""
        each_s = self.drain.seconds_a_request()
        if each_s is None:
            return UNKNOWN_WAIT_S
        return MOST_WAIT_S if each_s == math.inf else min(self.waiting * each_s, MOST_WAIT_S)

    @property
    def waiting(self) -> int:
        return self._waiting.total()

    def wait(self, caller: str, requests: int) -> None:
        """Wait with so many more, or, below 0, fewer."""
        _add(self._waiting, caller, requests)

    def take(self, size: int) -> Refusal | None:
        """Hold so many more bytes of a body."""
        refusal = self._refuse_bytes(size)
        self._bytes += size
        return refusal

    def leave(self, caller: str, size: int) -> None:
        self._bytes -= size
        _add(self._inside, caller, -1)


class Place:
    """One HTTP request's. It waits as one request, and, once the engine has it, as those that it is there."""

    def __init__(self, room: Room, caller: str) -> None:
        self._room = room
        self._caller = caller
        self._expected, self._asked = 1, 0
        self._bytes = 0
        self._left = False

    def asked(self, requests: int = 1) -> None:
        """The engine got so many."""
        if not self._left:
            self._room.drain.add(requests)
            self._room.wait(self._caller, requests - self._expected)
            self._expected, self._asked = 0, self._asked + requests

    def started(self, requests: int = 1) -> None:
        """So many have their first token."""
        self._stop_waiting(requests, started=True)

    def take(self, size: int) -> Refusal | None:
        self._bytes += size
        return self._room.take(size)

    def leave(self) -> None:
        """What the engine has not begun is not asked for any more."""
        self._stop_waiting(self._asked, started=False)
        self._room.wait(self._caller, -self._expected)
        self._left = True
        self._room.leave(self._caller, self._bytes)

    def _stop_waiting(self, requests: int, *, started: bool) -> None:
        requests = min(requests, self._asked)
        self._asked -= requests
        self._room.drain.remove(requests, started=started)
        self._room.wait(self._caller, -requests)


def has_room(caller: str, held: Counter[str], most: float) -> bool:
    """Whether there is room for all, or, with others about, the caller holds less than its share."""
    callers = len(held) + (caller not in held)
    return held.total() < most or (callers > 1 and held[caller] < most / callers)


def _add(counts: Counter[str], caller: str, number: int) -> None:
    counts[caller] += number
    if not counts[caller]:
        del counts[caller]
