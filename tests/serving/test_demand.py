"""The wish for replicas: how it is left, renewed and withdrawn."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.driver.demand import EXPIRES_S, RENEW_S, Demand
from serve_app.serving import autoscaling
from serve_app.serving.autoscaling import BacklogPolicy, DriverDemand, replicas_needed
from tests.serving.kit import counts, requests

bounds = st.tuples(st.integers(0, 64), st.integers(1, 64)).map(lambda two: (min(two), max(two)))
targets = st.floats(min_value=0.1, max_value=1000)


# --- the number ---


@given(requests, targets, counts, bounds)
def test_the_number_stays_within_the_bounds_whatever_is_measured(
    requests: float, target: float, wish: int, bounds: tuple[int, int]
) -> None:
    lower, upper = bounds
    needed = replicas_needed(requests=requests, requests_per_replica=target, wanted=wish, lower=lower, upper=upper)
    assert isinstance(needed, int)
    assert lower <= needed <= upper


@given(requests, targets, counts, counts, bounds)
def test_a_larger_wish_never_gives_fewer_replicas(
    requests: float, target: float, one: int, other: int, bounds: tuple[int, int]
) -> None:
    def needed(wish: int) -> int:
        return replicas_needed(
            requests=requests, requests_per_replica=target, wanted=wish, lower=bounds[0], upper=bounds[1]
        )

    assert needed(min(one, other)) <= needed(max(one, other))


@given(st.floats(0, 1e6), targets, counts, bounds)
def test_the_number_is_the_larger_of_online_demand_and_wish(
    requests: float, target: float, wish: int, bounds: tuple[int, int]
) -> None:
    lower, upper = bounds
    needed = replicas_needed(requests=requests, requests_per_replica=target, wanted=wish, lower=lower, upper=upper)
    assert needed == max(lower, min(upper, max(wish, math.ceil(requests / target))))


# --- the wish ---


def test_a_wish_counts_once_it_is_renewed_and_until_it_expires() -> None:
    now = 0.0
    wish = DriverDemand(EXPIRES_S, clock=lambda: now)
    wish.update(None)
    wish.update(b"4 1")
    assert wish.replicas() == 4
    now = EXPIRES_S - 0.1
    wish.update(b"4 1")  # nobody renewed it
    assert wish.replicas() == 4
    now = EXPIRES_S
    assert wish.replicas() == 0
    wish.update(b"4 2")
    assert wish.replicas() == 4


def test_a_wish_that_lay_there_before_we_looked_is_of_a_dead_driver_until_it_is_renewed() -> None:
    wish = DriverDemand(EXPIRES_S)
    wish.update(b"4 1")
    wish.update(b"4 1")
    assert wish.replicas() == 0
    wish.update(b"4 2")
    assert wish.replicas() == 4


@given(st.lists(st.none() | st.binary() | counts.map(lambda n: b"%d 0" % n)))
def test_what_lies_in_the_store_is_a_number_or_a_value_error(contents: list[bytes | None]) -> None:
    wish = DriverDemand(EXPIRES_S)
    for left in contents:
        with suppress(ValueError):
            wish.update(left)
        assert isinstance(wish.replicas(), int)


def test_a_killed_driver_s_wish_ends_within_30_s() -> None:
    assert EXPIRES_S + BacklogPolicy()._poll_s <= 30
    assert 3 * RENEW_S < EXPIRES_S


# --- the driver's side ---


class Store:
    """Ray's key-value store as the driver sees it, without Ray."""

    def __init__(self, *, broken: bool = False) -> None:
        self.written: list[tuple[str, str]] = []
        self._broken = broken
        self._changed = threading.Condition()

    def leave(self, key: str, value: str) -> None:
        with self._changed:
            self.written.append((key, value))
            self._changed.notify_all()
        if self._broken:
            raise RuntimeError("GCS is away")

    def wait(self, writes: int) -> list[tuple[str, str]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.written) >= writes, timeout=5)
        return self.written


def test_the_policy_reads_what_the_driver_leaves() -> None:
    store, wish = Store(), DriverDemand(EXPIRES_S)
    wish.update(None)
    Demand(put=store.leave).set(5)
    ((key, value),) = store.wait(1)
    wish.update(value.encode())
    assert wish.replicas() == 5
    assert key == autoscaling.KV_KEY.format(app="replicas", deployment="Replica")


def test_a_renewal_of_the_same_number_is_another_text() -> None:
    store = Store()
    demand = Demand(put=store.leave)
    demand.set(2)
    store.wait(1)
    demand.set(2)
    (_, first), (_, second) = store.wait(2)
    assert first != second


def test_an_idle_driver_withdraws_its_wish_once_and_leaves_another_driver_s_alone() -> None:
    store = Store()
    demand = Demand(put=store.leave)
    demand.set(0)
    demand.set(2)
    store.wait(1)
    for _ in range(3):
        demand.set(0)
    demand._writer.shutdown()
    assert [value.split()[0] for _, value in store.written] == ["2", "0"]


def test_a_store_that_fails_is_tried_again_at_the_next_renewal() -> None:
    store = Store(broken=True)
    demand = Demand(put=store.leave)
    demand.set(2)
    store.wait(1)
    demand.set(2)
    store.wait(2)


def test_setting_a_wish_does_not_wait_for_the_store() -> None:
    gate = threading.Event()

    def leave(key: str, value: str) -> None:
        gate.wait(5)

    demand = Demand(put=leave)
    started = time.perf_counter()
    for _ in range(10):
        demand.set(1)
    assert time.perf_counter() - started < 1
    gate.set()


def test_a_wish_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, got -1"):
        Demand(put=lambda key, value: None).set(-1)
