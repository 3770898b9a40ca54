"""The counters by themselves, on a clock of their own, and what a replica does when the shared ones are away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.serving.gate import shared_limits
from serve_app.serving.gate.keys import Key
from serve_app.serving.gate.limits import WINDOW_S, Counters, Quota, Standing, Window
from serve_app.serving.gate.shared_limits import AWAY_S, RayCounters, SharedLimits

KEY = Key(name="alice", sha256="0" * 64, requests_per_minute=3, tokens_per_minute=100)


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


steps = st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200)


@given(steps, st.integers(1, 10))
def test_no_sixty_seconds_have_more_than_the_limit(steps: list[float], limit: int) -> None:
    clock = Clock()
    counters, admitted = Counters(clock), []
    for clock.now in accumulate(steps, initial=1000.0):
        if counters.admit("alice", limit, None).refused_by is None:
            admitted.append(clock.now)
    for first in admitted:
        assert sum(first <= at < first + WINDOW_S for at in admitted) <= limit


@given(steps, st.integers(1, 10))
def test_who_waits_as_told_is_let_in_and_was_not_told_to_wait_longer_than_needed(
    steps: list[float], limit: int
) -> None:
    clock = Clock()
    counters = Counters(clock)
    for clock.now in accumulate(steps, initial=1000.0):
        standing = counters.admit("alice", limit, None)
        if standing.refused_by:
            break
    else:
        return
    refused_at = clock.now
    assert 0 < standing.wait_s <= WINDOW_S + 1
    clock.now = refused_at + standing.wait_s - 1.001  # a slot earlier it is not yet true
    assert clock.now < refused_at or counters.admit("alice", limit, None).refused_by == "requests"
    clock.now = refused_at + standing.wait_s + 1e-6
    assert counters.admit("alice", limit, None).refused_by is None


@given(st.lists(st.tuples(st.floats(0, 20, allow_nan=False), st.integers(0, 1000)), max_size=100))
def test_a_window_is_the_sum_of_what_came_in_the_last_minute(events: list[tuple[float, int]]) -> None:
    window, now, seen = Window(), 0.0, []
    for step, amount in events:
        now += step
        window.add(amount, now)
        seen.append((now, amount))
        in_minute = sum(amount for at, amount in seen if at > now - WINDOW_S)
        in_minute_and_slot = sum(amount for at, amount in seen if at > now - WINDOW_S - 1)
        assert in_minute <= window.used(now) <= in_minute_and_slot


def test_tokens_are_charged_beyond_the_limit_and_the_key_waits_until_they_are_paid() -> None:
    clock = Clock()
    counters = Counters(clock)
    assert counters.admit("alice", None, 100).refused_by is None
    counters.charge("alice", 250)
    standing = counters.admit("alice", None, 100)
    assert (standing.refused_by, standing.tokens and standing.tokens.remaining) == ("tokens", 0)
    clock.now += standing.wait_s
    assert counters.admit("alice", None, 100).refused_by is None


def test_a_refused_request_is_not_counted() -> None:
    clock = Clock()
    counters = Counters(clock)
    for _ in range(50):
        counters.admit("alice", 2, None)
    clock.now += WINDOW_S + 1
    assert counters.admit("alice", 2, None).requests == Quota(2, 1, WINDOW_S + 1)


def test_keys_are_counted_apart() -> None:
    counters = Counters(Clock())
    assert counters.admit("alice", 1, None).refused_by is None
    assert counters.admit("alice", 1, None).refused_by == "requests"
    assert counters.admit("bob", 1, None).refused_by is None


class FakeRemote:
    """Counters in another process; `fail` is what they do instead of answering."""

    def __init__(self, clock: Clock) -> None:
        self.counters = Counters(clock)
        self.fail: Callable[[], Any] | None = None
        self.asked = 0

    async def admit(self, *limits: Any) -> Standing:
        self.asked += 1
        if self.fail is not None:
            await self.fail()
        return self.counters.admit(*limits)

    def charge(self, name: str, tokens: int) -> None:
        if self.fail is not None:
            raise ConnectionError
        self.counters.charge(name, tokens)


async def hang() -> None:
    await asyncio.Event().wait()


async def refuse_connection() -> None:
    raise ConnectionError("gone")


async def test_limits_hold_over_replicas() -> None:
    clock = Clock()
    remote = FakeRemote(clock)
    replicas = [SharedLimits(remote, clock=clock) for _ in range(2)]
    standings = [await replicas[i % 2].admit(KEY) for i in range(4)]
    assert [standing.refused_by for standing in standings] == [None, None, None, "requests"]
    clock.now += WINDOW_S + 1
    replicas[0].charge(KEY, 100)
    assert (await replicas[1].admit(KEY)).refused_by == "tokens"


@pytest.mark.parametrize("fail", [hang, refuse_connection])
async def test_a_replica_judges_alone_by_all_that_it_saw_while_the_counters_are_away(
    fail: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    remote = FakeRemote(clock)
    shared = SharedLimits(remote, timeout_s=0.01, clock=clock)
    assert (await shared.admit(KEY)).refused_by is None  # counted on both sides
    remote.fail = fail
    with caplog.at_level(logging.WARNING):
        standings = [await shared.admit(KEY) for _ in range(3)]
        assert [standing.refused_by for standing in standings] == [None, None, "requests"]
        assert remote.asked == 2  # the first after it was away, and not again
        clock.now += AWAY_S
        await shared.admit(KEY)
        assert remote.asked == 3
    assert len(caplog.records) == 1
    shared.charge(KEY, 10)  # does not raise


async def test_a_replica_comes_back_to_the_shared_counters() -> None:
    clock = Clock()
    remote = FakeRemote(clock)
    shared = SharedLimits(remote, timeout_s=0.01, clock=clock)
    remote.fail = refuse_connection
    await shared.admit(KEY)
    remote.fail = None
    clock.now += AWAY_S
    await shared.admit(KEY)
    quota = remote.counters.admit(KEY.name, 3, None).requests
    assert quota is not None
    assert quota.remaining == 1


async def test_the_first_request_waits_for_the_counters_to_start_and_later_ones_wait_little() -> None:
    clock = Clock()
    remote = FakeRemote(clock)
    remote.fail = lambda: asyncio.sleep(0.05)
    shared = SharedLimits(remote, timeout_s=0.01, first_timeout_s=5, clock=clock)
    await shared.admit(KEY)
    assert remote.counters.admit(KEY.name, 1, None).refused_by == "requests"
    await shared.admit(KEY)
    assert remote.counters.admit(KEY.name, 2, None).refused_by is None


async def test_an_actor_that_died_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Method:
        def __init__(self, call: Callable[..., Any], alive: bool) -> None:
            self.call, self.alive = call, alive

        async def remote(self, *args: Any) -> Any:
            if not self.alive:
                raise RuntimeError("the actor died")
            return self.call(*args)

    actors = iter(SimpleNamespace(admit=Method(Counters().admit, alive)) for alive in (False, True))
    monkeypatch.setattr(shared_limits, "_actor", lambda: next(actors))
    counters = RayCounters()
    with pytest.raises(RuntimeError, match="died"):
        await counters.admit("alice", 3, None)
    assert (await counters.admit("alice", 3, None)).refused_by is None
