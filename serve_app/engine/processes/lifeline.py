"""Ties vLLM's child processes to the life of their parent, and their shared memory to theirs (shared_memory.py).

Otherwise a killed replica leaves EngineCore to init, and its workers spin on with their memory held (ray#54364,
vllm#20860). `tie_to_parent`, a plug-in (`vllm.general_plugins`, pyproject.toml) in all of vLLM's processes, asks the
kernel for SIGKILL when the parent ends.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

from serve_app.engine.processes.shared_memory import expect_unlinked

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel signal this process when its starting thread ends. Survives exec."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


def tie_to_parent() -> None:
    """Die with the parent if `multiprocessing` started this process.

    The kernel watches the starting *thread*: the replica's event loop or EngineCore's main thread, both as long-lived
    as their processes. Processes from a fork server (fork.py) are tied to it, and it to the replica.
    """
    expect_unlinked()
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    die_with_parent(signal.SIGKILL)
    import psutil

    if parent.pid not in {one.pid for one in psutil.Process().parents()}:  # ended before the request
        os.kill(os.getpid(), signal.SIGKILL)
