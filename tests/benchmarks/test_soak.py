"""Of a long run: what counts as growth, what a process is, and what of /dev/shm is ours."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.overload.clients import Ask, figures, recovery_s
from benchmarks.soak.census import Being, Census, Look, Usage, files_below, shared_memory
from benchmarks.soak.growth import MIB, growths, slope

ENGINE = Being("EngineCore", 7, 0.0)


def looks(mib: list[float], *, descriptors: tuple[int, int] = (5, 5)) -> tuple[list[Look], Look, Look]:
    def look(at_s: float, size: float, open_: int) -> Look:
        return Look(at_s, {ENGINE: Usage(int(size * MIB), open_, 3)}, frozenset(), frozenset())

    sampled = [look(float(at_s), size, descriptors[0]) for at_s, size in enumerate(mib)]
    return sampled, look(0, mib[0], descriptors[0]), look(len(mib), mib[-1], descriptors[1])


def test_a_slow_leak_is_found_in_noise_that_is_larger() -> None:
    draw = random.Random(1)
    noisy = [100 + 0.05 * at_s + draw.uniform(-8, 8) for at_s in range(200)]
    (grown,) = growths(*looks(noisy))
    assert 7 < grown.pct < 13


@pytest.mark.parametrize("wild", [range(5), range(95, 100), range(0, 100, 6)])
def test_what_is_held_for_a_moment_is_no_growth(wild: range) -> None:
    held = [100.0] * 100
    for at_s in wild:
        held[at_s] = 160.0
    (grown,) = growths(*looks(held))
    assert grown.pct == pytest.approx(0)


def test_a_line_is_found_as_it_is() -> None:
    assert slope([(t, 3 + 2 * t) for t in range(20)]) == pytest.approx((3, 2))


def test_descriptors_count_from_one_quiet_moment_to_another() -> None:
    (grown,) = growths(*looks([100.0] * 20, descriptors=(5, 9)))
    assert grown.descriptors == 4


def test_a_process_that_was_replaced_is_not_compared_with_the_one_before() -> None:
    sampled, before, after = looks([100.0] * 20)
    replaced = after._replace(processes={ENGINE._replace(pid=8): Usage(1, 1, 1)})
    assert growths(sampled, before, replaced) == []


def test_a_census_sees_descriptors_threads_and_temporary_files(tmp_path: Path) -> None:
    code = "import sys; files = [open('/dev/null') for _ in range(40)]; print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "left").touch()
    look = Census(lambda: [psutil.Process(child.pid)], tmp_path).look()
    child.communicate()
    ((being, usage),) = look.processes.items()
    assert being.pid == child.pid
    assert usage.descriptors >= 40
    assert usage.threads == 1
    assert look.temporary == {"below/left"} == files_below(tmp_path)


def test_shared_memory_that_nobody_uses_is_ours_and_another_program_s_is_not() -> None:
    name = f"serve_app_test_{random.getrandbits(32):x}"
    code = f"""
import mmap, sys
with open('/dev/shm/{name}', 'w+b') as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 4096)
print(flush=True)
sys.stdin.read()
"""
    user = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert user.stdout is not None
    try:
        user.stdout.readline()
        assert name not in shared_memory(ours=())
        assert name in shared_memory(ours=(user.pid,))
        user.communicate()
        assert name in shared_memory(ours=())
    finally:
        user.kill()
        user.wait()
        Path("/dev/shm", name).unlink(missing_ok=True)


def accepted(sent_s: float, ttft_s: float = 0.1) -> Ask:
    return Ask("a", sent_s, 200, ttft_s, ttft_s + 1, whole=True)


def test_a_refusal_without_a_time_to_come_back_is_a_failure_and_so_is_a_stream_cut_short() -> None:
    asks = [accepted(0), Ask("a", 0, 429, retry_after_s=3.0), Ask("a", 0, 429), Ask("a", 0, 200), Ask("a", 0, 503)]
    found = figures(asks, 1)
    assert (found["accepted_per_s"], found["refused"], found["failed"], found["server_errors"]) == (1, 1, 3, 1)


def test_it_has_recovered_with_the_last_that_was_slow_or_refused() -> None:
    asks = [accepted(0, 5.0), Ask("a", 1.0, 429, retry_after_s=1), accepted(2.0, 0.9), accepted(3.0)]
    assert recovery_s(asks, normal_ttft_s=0.5) == 2.0
    assert recovery_s(asks, normal_ttft_s=1.0) == 1.0
