"""Seconds of work that wait, bytes that are held, and shares of keys, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.serving.gate.refusal import Refusal
from serve_app.serving.gate.room import DEEP, LEAST_SEEN_S, MEMORY_S, Place, Room
from serve_app.settings import AccessSettings


class Engine:
    """Starts `rate` requests a second, oldest first, behind a Room."""

    def __init__(self, rate: float, **settings: Any) -> None:
        self.now = 0.0
        self.rate = rate
        self.room = Room(AccessSettings(**settings), lambda: self.now)
        self.queue: list[tuple[float, Place]] = []
        self.waits_s: list[float] = []

    def offer(self, caller: str = "", body_bytes: int = 0) -> Refusal | None:
        place = self.room.enter(caller, body_bytes)
        if isinstance(place, Refusal):
            return place
        place.asked()
        self.queue.append((self.now, place))
        return None

    def run(self, seconds: float, offered: dict[str, float]) -> dict[str, list[Refusal | None]]:
        """Requests of each caller at its rate; what became of them."""
        until = self.now + seconds
        answers: dict[str, list[Refusal | None]] = {caller: [] for caller in offered}
        due = {caller: self.now for caller in offered}
        next_start = self.now + 1 / self.rate
        while self.now < until:
            caller = min(due, key=lambda name: due[name], default="")
            self.now = min(next_start, due.get(caller, until))
            if self.now == next_start:
                next_start += 1 / self.rate
                self.start_one()
            else:
                answers[caller].append(self.offer(caller))
                due[caller] += 1 / offered[caller]
        return answers

    def start_one(self) -> None:
        if self.queue:
            came, place = self.queue.pop(0)
            self.waits_s.append(self.now - came)
            place.started()
            place.leave()


def retry_after_s(refusal: Refusal) -> float:
    return float(dict(refusal.headers)[b"retry-after"])


@pytest.mark.parametrize("rate", [2.0, 50.0])
def test_at_ten_times_the_rate_what_is_let_in_waits_no_longer_than_allowed(rate: float) -> None:
    engine = Engine(rate, max_queue_s=10, max_inflight_requests=None)
    engine.run(60, {"": 10 * rate})
    engine.waits_s.clear()
    answers = engine.run(60, {"": 10 * rate})[""]
    assert max(engine.waits_s) < 12
    assert len(engine.waits_s) >= 60 * rate - 1  # the engine is never idle for it
    assert all(refusal is None or 1 <= retry_after_s(refusal) <= 12 for refusal in answers)
    assert sum(refusal is not None for refusal in answers) > 0.85 * len(answers)


def test_below_the_rate_nobody_is_refused() -> None:
    engine = Engine(20, max_queue_s=1)
    answers = engine.run(300, {"": 19})[""]
    assert answers.count(None) == len(answers)


def test_a_burst_is_let_in_while_the_rate_is_unknown() -> None:
    engine = Engine(1000, max_queue_s=1)
    assert [engine.offer() for _ in range(400)] == [None] * 400


def test_one_that_is_slow_now_and_fast_later_is_known_as_fast_soon() -> None:
    engine = Engine(1, max_queue_s=10)
    engine.run(60, {"": 20})
    engine.rate = 100
    engine.run(5, {"": 90})
    answers = engine.run(10, {"": 90})[""]
    assert answers.count(None) == len(answers)


def test_a_rate_is_forgotten_with_time() -> None:
    engine = Engine(2, max_queue_s=5)
    engine.run(60, {"": 20})
    assert [engine.offer() for _ in range(2)][-1] is not None
    while engine.queue:
        engine.start_one()
    engine.now += 5 * MEMORY_S
    assert [engine.offer() for _ in range(100)] == [None] * 100


def test_an_engine_that_starts_nothing_refuses_all_but_a_few() -> None:
    engine = Engine(1, max_queue_s=10)
    taken = [engine.offer() for _ in range(DEEP)]
    engine.now += LEAST_SEEN_S
    refusal = engine.offer()
    assert taken == [None] * DEEP
    assert refusal is not None
    assert refusal.reason == "queue"
    assert retry_after_s(refusal) == 60


def test_one_key_s_flood_does_not_keep_another_out() -> None:
    engine = Engine(10, max_queue_s=5)
    engine.run(20, {"flood": 100})
    answers = engine.run(60, {"flood": 100, "small": 2})
    assert answers["small"].count(None) == len(answers["small"])
    assert answers["flood"].count(None) < 0.15 * len(answers["flood"])
    assert max(engine.waits_s[-300:]) < 10


def test_two_floods_get_equal_shares() -> None:
    engine = Engine(10, max_queue_s=5)
    engine.run(20, {"first": 100})
    answers = engine.run(120, {"first": 100, "second": 50})
    first, second = (answers[name].count(None) for name in ("first", "second"))
    assert 0.7 < first / second < 1.4


def test_places_are_left_to_other_keys() -> None:
    engine = Engine(1, max_inflight_requests=16, max_queue_s=None)
    taken = [engine.offer("flood") for _ in range(16)]
    assert taken.count(None) == 14
    assert engine.offer("small") is None


def test_without_keys_all_places_are_for_all() -> None:
    engine = Engine(1, max_inflight_requests=16, max_queue_s=None)
    assert [engine.offer() for _ in range(16)] == [None] * 16
    refusal = engine.offer()
    assert refusal is not None
    assert refusal.reason == "overloaded"


def test_bodies_beyond_the_bytes_are_refused_until_others_are_gone() -> None:
    room = Room(AccessSettings(max_inflight_bytes=100))
    large = room.enter("", 80)
    assert isinstance(large, Place)
    assert large.take(80) is None
    refused = room.enter("", 30)
    assert isinstance(refused, Refusal)
    assert refused.reason == "bytes"
    unannounced = room.enter("", 0)
    assert isinstance(unannounced, Place)
    assert unannounced.take(30) is not None
    unannounced.leave()
    large.leave()
    assert isinstance(room.enter("", 100), Place)


def test_a_client_that_left_is_no_work_done() -> None:
    engine = Engine(1, max_queue_s=10)
    for _ in range(DEEP + 1):
        engine.offer()
    engine.now += LEAST_SEEN_S
    engine.queue.pop()[1].leave()
    assert engine.offer() is not None


def test_a_list_waits_as_the_requests_that_the_engine_has_of_it() -> None:
    engine = Engine(1, max_queue_s=10)
    engine.offer()
    place = engine.queue[0][1]
    place.asked(29)
    engine.now += 2 * LEAST_SEEN_S
    place.started(10)  # of 29 in two seconds: the others take four
    assert engine.offer() is None
    place.asked(40)
    assert engine.offer() is not None


def test_requests_that_the_engine_never_gets_say_nothing_of_it() -> None:
    engine = Engine(2, max_queue_s=10)
    engine.run(60, {"": 20})
    waiting = engine.room.waiting
    for _ in range(1000):  # answered at once: wrong ones, or those beyond a key's limit
        place = engine.room.enter("other", 0)
        assert isinstance(place, Place)
        place.leave()
    assert engine.room.waiting == waiting
    assert engine.offer() is not None or engine.offer() is not None


def test_what_only_tokenizes_is_not_refused_for_an_engine_that_it_does_not_use() -> None:
    now = 0.0
    room = Room(AccessSettings(max_queue_s=1), lambda: now)
    places = [room.enter("", 0) for _ in range(50)]
    now = 100.0
    assert isinstance(room.enter("", 0), Place)
    assert all(isinstance(place, Place) for place in places)


def test_a_place_that_was_left_waits_for_nothing_more() -> None:
    room = Room(AccessSettings())
    place = room.enter("", 0)
    assert isinstance(place, Place)
    place.asked(3)
    place.leave()
    place.started()
    place.asked()
    assert room.waiting == 0


def test_a_full_replica_whose_engine_hung_and_has_nothing_left_still_says_when_to_come_back() -> None:
    engine = Engine(1, max_inflight_requests=DEEP + 1, max_queue_s=None)
    for _ in range(DEEP):
        engine.offer()
    engine.now += LEAST_SEEN_S
    for _, place in engine.queue:
        place.started(0)
        place.leave()
    for _ in range(DEEP + 1):
        answering = engine.room.enter("", 0)
        assert isinstance(answering, Place)
        answering.asked(0)
    refusal = engine.room.enter("", 0)
    assert isinstance(refusal, Refusal)
    assert retry_after_s(refusal) == 60
