"""Slow or hung, told by a clock and processor times that the tests set; and of real processes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.health.watchdog import WINDOW_S, Watchdog, wanted_cpu_s

RANK_0, RANK_1, CORE = 10, 11, 12
STALL_S, STEP_S = 15.0, 600.0


class Machine:
    """A clock, and processes that use a share of a core each."""

    def __init__(self, *, workers: tuple[int, ...] = (RANK_0, RANK_1), core: int | None = CORE) -> None:
        self.now = 1000.0
        self.used: Counter[int] = Counter()
        self.watchdog = Watchdog(
            workers,
            core,
            stall_timeout_s=STALL_S,
            step_timeout_s=STEP_S,
            clock=lambda: self.now,
            wanted_s=lambda pid: self.used[pid],
        )
        self.began = self.now

    def pass_time(self, seconds: float, shares: dict[int, float], *, every_s: float = 1.0) -> str:
        """Let time pass, with looks in between; why the engine hangs, if it does."""
        end = self.now + seconds
        while self.now < end:
            self.now += every_s
            for pid, share in shares.items():
                self.used[pid] += share * every_s  # type: ignore[assignment]
            self.watchdog.look()
        return self.watchdog.hung(self.began)


def test_a_step_that_takes_minutes_is_slow_as_long_as_all_workers_compute() -> None:
    machine = Machine()
    assert machine.pass_time(STEP_S - 5, {RANK_0: 1.0, RANK_1: 0.9}) == ""


@pytest.mark.parametrize("spinning", [0.0, 1.0])
def test_a_stopped_worker_is_a_hang_though_the_other_one_waits_for_it_in_a_busy_loop(spinning: float) -> None:
    machine = Machine()
    assert machine.pass_time(STALL_S - 1, {RANK_0: spinning}) == ""
    hung = machine.pass_time(3, {RANK_0: spinning})
    assert "no step in 17 s" in hung
    assert f"worker {RANK_1 if spinning else RANK_0}" in hung


def test_a_rank_that_is_done_early_may_wait_for_the_other_as_long_as_it_worked() -> None:
    machine = Machine()
    assert machine.pass_time(60, {RANK_0: 1.0, RANK_1: 1.0}) == ""
    assert machine.pass_time(58, {RANK_0: 1.0}) == ""
    assert f"worker {RANK_1}" in machine.pass_time(4, {RANK_0: 1.0})


def test_workers_that_only_look_for_messages_are_idle() -> None:
    assert Machine().pass_time(STALL_S + 3, {RANK_0: 0.04, RANK_1: 0.04, CORE: 0.02})


def test_an_engine_whose_core_computes_is_not_hung() -> None:
    assert Machine().pass_time(4 * STALL_S, {CORE: 1.0}) == ""


def test_a_worker_that_computes_without_end_is_a_hang_at_last() -> None:
    assert "beyond health.step_timeout_s" in Machine().pass_time(STEP_S + 5, {RANK_0: 1.0, RANK_1: 1.0})


def test_a_step_is_a_sign_of_life_for_as_long_as_a_stall() -> None:
    machine = Machine()
    machine.pass_time(STALL_S - 1, {})
    machine.watchdog.step()
    assert machine.pass_time(STALL_S - 1, {}) == ""
    assert machine.pass_time(3, {})


def test_without_workers_to_watch_steps_alone_count() -> None:
    machine = Machine(workers=(), core=None)
    assert machine.pass_time(STEP_S - 1, {}) == ""
    assert machine.pass_time(2, {})


def test_the_time_before_there_was_work_does_not_count() -> None:
    machine = Machine()
    machine.pass_time(3600, {})
    machine.began = machine.now
    assert machine.pass_time(STALL_S - 2, {}) == ""


@given(st.floats(0.2, 5.0), st.floats(0.2, 1.0))
def test_a_working_engine_never_hangs_however_seldom_it_is_looked_at(every_s: float, share: float) -> None:
    assert Machine().pass_time(STEP_S - 10, {RANK_0: share, RANK_1: share}, every_s=every_s) == ""


@contextmanager
def process(script: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", script]) as child:
        try:
            yield child
        finally:
            child.kill()


def test_processor_time_of_a_real_process_grows_as_it_computes_and_stands_as_it_is_stopped() -> None:
    with process("while True: pass") as child:
        time.sleep(2 * WINDOW_S)
        assert wanted_cpu_s(child.pid) > WINDOW_S
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(0.1)
        before = wanted_cpu_s(child.pid)
        time.sleep(0.5)
        assert wanted_cpu_s(child.pid) == before


def test_processor_time_counts_threads() -> None:
    endless = "lambda: all(iter(lambda: True, False))"
    with process(f"import threading; threading.Thread(target={endless}).start()") as child:
        time.sleep(1.5)
        assert wanted_cpu_s(child.pid) > 0.5


def test_a_process_that_is_gone_uses_nothing() -> None:
    with process("pass") as child:
        child.wait()
    assert wanted_cpu_s(child.pid) == 0.0
