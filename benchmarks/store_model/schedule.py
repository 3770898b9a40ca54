"""Actors that take turns, a request at a time, in an order that a seed decides.

Knows threads and what may happen to a request. Does not know stores, nor what a request does.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Fate = Literal["done", "killed", "refused", "unanswered", "resent", "late"]
# Of the requests of a history with faults.
KILL_SHARE, FAULT_SHARE = 0.015, 0.05
_here = threading.local()


class Killed(BaseException):
    """Raised in an actor that was killed, at this request and at all after it."""


class Actor:
    """A thread that runs `work` whenever the schedule lets it. `faults`: whether it may be killed or refused."""

    def __init__(self, schedule: Schedule, name: str, work: Callable[[], None], *, faults: bool) -> None:
        self.name = name
        self.faults = faults
        self.ended = self.killed = False
        self.error: BaseException | None = None
        self.fate: Fate = "done"
        self.turn = threading.Lock()
        self.turn.acquire()
        self.schedule = schedule
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        _here.actor = self
        self.turn.acquire()
        try:
            self._work()
        except BaseException as error:
            self.error = error
        self.ended = True
        self.schedule.back.release()

    def ask(self, what: str, *, write: bool, network: bool) -> Fate:
        """Hand the turn back; what happens to the request, once it is the actor's turn again."""
        if self.killed:
            raise Killed
        self.schedule.asked[self] = (what, write, network)
        self.schedule.back.release()
        self.turn.acquire()
        if self.fate == "killed":
            self.killed = True
            raise Killed
        return self.fate

    def join(self) -> None:
        self._thread.join()


class Schedule:
    """One history. `faults`: whether anything goes wrong but the order."""

    def __init__(self, seed: int, *, faults: bool) -> None:
        self.random = random.Random(seed)
        self.log: list[str] = []
        self.counts: Counter[str] = Counter()
        self.back = threading.Lock()
        self.back.acquire()
        self.asked: dict[Actor, tuple[str, bool, bool]] = {}
        self._faults = faults
        # Some histories have long runs of one actor, some change at every request.
        self._change = self.random.choice((0.05, 0.2, 0.5, 0.9))
        self._late: list[tuple[str, Callable[[], object]]] = []

    def run(self, *actors: Actor) -> None:
        """Until all actors have ended."""
        last: Actor | None = None
        while waiting := [actor for actor in actors if not actor.ended]:
            if self._late and self.random.random() < 0.1:
                self._deliver()
            if last not in waiting or self.random.random() < self._change:
                last = self.random.choice(waiting)
            assert last is not None
            self._step(last)
        for actor in actors:
            actor.join()

    def _step(self, actor: Actor) -> None:
        what, write, network = self.asked.pop(actor, ("begins", False, False))
        actor.fate = self._fate(actor, write=write, network=network) if what != "begins" else "done"
        self.counts[actor.fate] += 1
        self.log.append(f"{actor.name} {what}{'' if actor.fate == 'done' else f': {actor.fate}'}")
        actor.turn.release()
        self.back.acquire()

    def _fate(self, actor: Actor, *, write: bool, network: bool) -> Fate:
        if not (self._faults and actor.faults):
            return "done"
        chance = self.random.random()
        if chance < KILL_SHARE:
            return "killed"
        if chance > KILL_SHARE + FAULT_SHARE:
            return "done"
        fates: list[Fate] = ["refused"]
        if write:
            fates.append("unanswered")
        if write and network:
            fates += ["resent", "late"]
        return self.random.choice(fates)

    def put_off(self, what: str, call: Callable[[], object]) -> None:
        """A request that is still on its way, though nobody waits for its answer any more."""
        self._late.append((what, call))

    def deliver_all(self) -> None:
        """Let what is still on its way arrive."""
        while self._late:
            self._deliver()

    def _deliver(self) -> None:
        what, call = self._late.pop(self.random.randrange(len(self._late)))
        try:
            call()
            answer = "arrives"
        except Exception as error:
            answer = f"arrives and is refused ({type(error).__name__})"
        self.log.append(f"late: {what} {answer}")


def request(
    what: str, call: Callable[[], T], *, write: bool = False, network: bool = False, error: type[Exception]
) -> T:
    """`call`, in an actor as the schedule has it; elsewhere at once.

    Raises `error` for what is refused, unanswered or late. Only a `write` can be done without an answer; over a
    `network` it can also be late, or sent a second time by a client that has missed the first answer.
    """
    actor: Actor | None = getattr(_here, "actor", None)
    if actor is None:
        return call()
    fate = actor.ask(what, write=write, network=network)
    if fate == "refused":
        raise error(f"{what}: refused")
    if fate == "late":
        actor.schedule.put_off(f"{actor.name} {what}", call)
        raise error(f"{what}: no answer")
    result = call()
    if fate == "unanswered":
        raise error(f"{what}: no answer")
    return call() if fate == "resent" else result


def hooked(namespace: Any, **replaced: Any) -> Any:
    """The module with some of its names replaced."""

    class Hooked:
        def __getattr__(self, name: str) -> Any:
            return getattr(namespace, name)

    found = Hooked()
    vars(found).update(replaced)
    return found
