"""Shared memory whose name is gone ends with the processes that have mapped it, and not before."""

import os
import signal
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest

from serve_app.engine.processes.shared_memory import SHARED_MEMORY, unlink_mapped

OWNER = """
import multiprocessing as mp, os, sys, time
from multiprocessing.shared_memory import SharedMemory
from serve_app.engine.processes.shared_memory import expect_unlinked

expect_unlinked()
segment = SharedMemory(create=True, size=4096)
segment.buf[:3] = b"one"
print(segment.name, flush=True)
sys.stdin.readline()
segment.buf[3:6] = b"two"
print(bytes(segment.buf[:6]).decode(), flush=True)
segment.close(); segment.unlink()
"""


class Owner:
    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert self.process.stdout is not None
        self.segment = SHARED_MEMORY / self.process.stdout.readline().strip()
        assert self.segment.name.startswith("psm_")
        assert self.segment.exists()


@pytest.fixture
def owner() -> Owner:
    return Owner()


def unlinked(owner: Owner) -> list[Path]:
    return unlink_mapped([psutil.Process(owner.process.pid)])


def test_a_sigkill_leaves_nothing_in_dev_shm(owner: Owner) -> None:
    assert unlinked(owner) == [owner.segment]
    assert not owner.segment.exists()
    os.kill(owner.process.pid, signal.SIGKILL)
    owner.process.communicate()
    assert not owner.segment.exists()


def test_its_owner_goes_on_using_it_and_ends_without_complaint(owner: Owner) -> None:
    unlinked(owner)
    out, complaint = owner.process.communicate("go on\n")
    assert out.strip() == "onetwo"
    assert (owner.process.returncode, complaint) == (0, "")


def test_what_other_processes_have_mapped_is_left_alone(owner: Owner) -> None:
    mine = SharedMemory(create=True, size=4096)
    try:
        unlinked(owner)
        assert (SHARED_MEMORY / mine.name).exists()
    finally:
        mine.close()
        mine.unlink()
        owner.process.communicate("end\n")


def test_a_process_that_is_gone_has_mapped_nothing(owner: Owner) -> None:
    process = psutil.Process(owner.process.pid)
    owner.process.communicate("end\n")
    assert unlink_mapped([process]) == []
