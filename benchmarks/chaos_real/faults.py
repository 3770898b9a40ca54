"""What is done to the stack, by name, and how it is undone.

kill    SIGKILL
pause   SIGSTOP, and SIGCONT after PAUSE_S
hang    SIGSTOP for good
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.chaos_real.processes import CONTROLLER, DRIVER, REPLICA
from benchmarks.chaos_real.stack import Stack
from benchmarks.chaos_real.stores import LOCAL, REMOTE, Stores
from benchmarks.chaos_real.wall_clock import WallClock

PAUSE_S = 15.0
# How soon a supervisor starts a process again, and how long a liveness probe waits for one that hangs.
RESTART_S, PROBE_S = 3.0, 45.0
CLOCK_STEP_S = 3600.0
Undo = Callable[[], None]


@dataclass(frozen=True)
class Place:
    """All that a fault may touch."""

    stack: Stack
    stores: Stores
    clock: WallClock
    rng: random.Random


@dataclass(frozen=True)
class Fault:
    """`begin` does it and gives what undoes it, which happens after `lasts_s`."""

    begin: Callable[[Place], Undo]
    lasts_s: float = 0.0
    store: str = LOCAL
    engine: bool = False  # needs real engines
    clock: bool = False  # needs a stack whose clock can be set


def nothing() -> None:
    """Undoes what needs no help."""


# --- who is hit ---


def _replica(place: Place) -> int:
    return place.rng.choice(place.stack.processes.titled(REPLICA))


def _worker(place: Place) -> int:
    return place.rng.choice([pid for one in place.stack.client.replicas() for pid in one.engine.worker_pids])


def _core(place: Place) -> int:
    return psutil.Process(_worker(place)).ppid()


def _driver(place: Place) -> int:
    return place.stack.processes.titled(DRIVER)[0]


def _controller(place: Place) -> int:
    return place.stack.processes.titled(CONTROLLER)[0]


def _proxy(place: Place) -> int:
    return place.rng.choice(place.stack.processes.listening(place.stack.port))


def _raylet(place: Place) -> int:
    return place.stack.raylet(_replica(place))


def _gcs(place: Place) -> int:
    return place.stack.gcs


# --- what is done to it ---


def _send(
    number: signal.Signals, target: Callable[[Place], int], undo: Callable[[Place, int], Undo]
) -> Callable[[Place], Undo]:
    def begin(place: Place) -> Undo:
        pid = target(place)
        os.kill(pid, number)
        return undo(place, pid)

    return begin


def _leave(place: Place, pid: int) -> Undo:
    return nothing


def _continue(place: Place, pid: int) -> Undo:
    def undo() -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    return undo


def _replace_node(place: Place, raylet: int) -> Undo:
    return lambda: place.stack.replace_node(raylet)


def _continue_node(place: Place, raylet: int) -> Undo:
    """A raylet that was taken for dead ends itself when it goes on, and its pod is replaced."""

    def undo() -> None:
        os.kill(raylet, signal.SIGCONT)
        with suppress(psutil.TimeoutExpired):
            psutil.Process(raylet).wait(PROBE_S / 3)
            place.stack.replace_node(raylet)

    return undo


def _restart_gcs(place: Place, pid: int) -> Undo:
    return place.stack.restart_gcs


def _of_processes() -> Iterator[tuple[str, Fault]]:
    for name, target, engine in (
        ("replica", _replica, False),
        ("core", _core, True),
        ("worker", _worker, True),
        ("driver", _driver, False),
        ("proxy", _proxy, False),
    ):
        yield f"{name}.kill", Fault(_send(signal.SIGKILL, target, _leave), engine=engine)
        yield f"{name}.pause", Fault(_send(signal.SIGSTOP, target, _continue), PAUSE_S, engine=engine)
        yield f"{name}.hang", Fault(_send(signal.SIGSTOP, target, _leave), engine=engine)
    # Nobody watches whether a controller hangs.
    yield "controller.kill", Fault(_send(signal.SIGKILL, _controller, _leave))
    yield "controller.pause", Fault(_send(signal.SIGSTOP, _controller, _continue), PAUSE_S)
    for name, target, go_on, replace in (
        ("raylet", _raylet, _continue_node, _replace_node),
        ("gcs", _gcs, _continue, _restart_gcs),
    ):
        yield f"{name}.kill", Fault(_send(signal.SIGKILL, target, replace), RESTART_S)
        yield f"{name}.pause", Fault(_send(signal.SIGSTOP, target, go_on), PAUSE_S)
        yield f"{name}.hang", Fault(_send(signal.SIGSTOP, target, replace), PROBE_S)


# In this order: a change of the store needs a dashboard that has lost no control store.
FAULTS: Mapping[str, Fault] = {
    "store.slow": Fault(lambda place: place.stores.delay(), PAUSE_S, store=REMOTE),
    "store.cut": Fault(lambda place: place.stores.cut(PAUSE_S), PAUSE_S, store=REMOTE),
    "store.full": Fault(lambda place: place.stores.fill(_driver(place)), PAUSE_S),
    "store.read-only": Fault(lambda place: place.stores.forbid_writes(), PAUSE_S),
    **dict(_of_processes()),
    "clock.forward": Fault(lambda place: place.clock.step(CLOCK_STEP_S), PAUSE_S, clock=True),
    "clock.back": Fault(lambda place: place.clock.step(-CLOCK_STEP_S), PAUSE_S, clock=True),
}
