"""A pod that goes waits for its replicas, and no longer than it may."""

from __future__ import annotations

from serve_app.serving.drain import POLL_S, drain


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run(replicas: list[int], timeout_s: float) -> tuple[bool, list[float], float]:
    """(whether all left, what was announced, seconds waited); the last number of replicas stays."""
    clock, announced = Clock(), list[float]()
    left = iter(replicas)
    last = replicas[-1]
    gone = drain(
        announced.append, lambda: next(left, last), timeout_s, sleep=clock.sleep, clock=lambda: clock.now
    )  # fmt: skip
    return gone, announced, clock.now


def test_a_pod_without_replicas_goes_at_once() -> None:
    assert run([0], 600) == (True, [600], 0)


def test_a_pod_waits_until_its_last_replica_has_left() -> None:
    assert run([2, 1, 1, 0], 600) == (True, [600], 3 * POLL_S)


def test_a_stream_that_does_not_end_holds_the_pod_no_longer_than_the_deadline() -> None:
    gone, _, waited = run([1], 10)
    assert not gone
    assert waited == 10
