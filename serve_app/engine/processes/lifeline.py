"""Ties vLLM's child processes to the life of the process that started them.

Without it, killing a replica re-parents EngineCore to init, and its tensor-parallel workers spin on with
their memory held (ray#54364, vllm#20860). vLLM loads the entry points `vllm.general_plugins` in every one
of its processes; `tie_to_parent` is one (pyproject.toml), and asks the kernel for SIGKILL when the parent
goes. Replica, EngineCore and workers form a chain, so the whole engine goes with the replica.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals) -> None:
    """Ask the kernel to send this process the signal when the thread that started it ends. Survives exec."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


def tie_to_parent() -> None:
    """Die with the parent process, if this process is a child that `multiprocessing` started.

    The kernel watches the *thread* that started this process; EngineCore is started from the replica's
    event loop and the workers from EngineCore's main thread, which live as long as their processes. One that came
    from a fork server (fork.py) is that one's child, and tied to it; the fork server is tied to the replica.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    die_with_parent(signal.SIGKILL)
    import psutil

    if parent.pid not in {one.pid for one in psutil.Process().parents()}:  # it went before we could ask
        os.kill(os.getpid(), signal.SIGKILL)
