"""Ties vLLM's child processes to the life of the process that started them.

Without it, killing a replica re-parents EngineCore to init, and its workers spin on with their memory held (ray#54364,
vllm#20860). `tie_to_parent`, a plug-in by `vllm.general_plugins` (pyproject.toml) in all of vLLM's processes, asks the
kernel for SIGKILL when the parent ends. Replica, EngineCore and workers form a chain, so the whole engine ends with the
replica.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel signal this process when the thread that started it ends. Survives exec."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


def tie_to_parent() -> None:
    """Die with the parent process, if `multiprocessing` started this one.

    The kernel watches the *thread* that started it: the replica's event loop for EngineCore, EngineCore's main thread
    for the workers, both as long-lived as their processes. A process from a fork server (fork.py) is tied to that, and
    the fork server to the replica.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    die_with_parent(signal.SIGKILL)
    import psutil

    if parent.pid not in {one.pid for one in psutil.Process().parents()}:  # it ended before we could ask
        os.kill(os.getpid(), signal.SIGKILL)
