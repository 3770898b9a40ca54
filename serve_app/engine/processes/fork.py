"""Forks vLLM's processes on a CPU host from one that has imported vLLM.

vLLM spawns EngineCore and one worker per rank, and each imports vLLM (16 s of a slow core). Python's fork server
imports it once, while the replica does. Workers are forked from EngineCore, as vLLM does on GPUs, which are unchanged.

    replica ─ spawns ─> fork server ─ forks ─> EngineCore ─ forks ─> workers
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.context import ForkContext, ForkProcess, ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from serve_app.engine.host.cpu import own_scheduling_group
from serve_app.engine.processes.lifeline import tie_to_parent
from serve_app.engine.processes.timeline import mark_worker_stages

logger = logging.getLogger(__name__)

PRELOADED = ["serve_app.engine.processes.tied", "serve_app.engine.processes.preload"]
CORE_NAME = "EngineCore"
# Marks a forked EngineCore.
FORKED_ENV = "SERVE_APP_FORKED_ENGINE"
# torch reads these on import; vLLM sets them for its CPU processes (platforms/cpu.py).
READ_AT_IMPORT = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
BINDING_ENV = "VLLM_CPU_OMP_THREADS_BIND"
# The fork server's owner.
OWNER_ENV = "SERVE_APP_FORK_SERVER_OF"


def start_fork_server() -> None:
    """Import vLLM in a fork server in the background. It ends with the calling thread."""
    for name, value in READ_AT_IMPORT.items():
        os.environ.setdefault(name, value)
    if libraries := preloaded_libraries(os.environ.get("LD_PRELOAD", "")):
        os.environ["LD_PRELOAD"] = libraries
    os.environ[OWNER_ENV] = str(os.getpid())
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def preloaded_libraries(given: str) -> str:
    """LD_PRELOAD as vLLM's CPU platform sets it (platforms/cpu.py): PyTorch's OpenMP, without which bound threads share
    a core (vllm#27369), and vLLM's tcmalloc."""
    found = [given] if given else []
    torch, vllm = (_folder(package) for package in ("torch", "vllm"))
    if not any(name in given for name in ("libomp", "libgomp", "libiomp")):
        own = [*torch.parent.glob("torch.libs/libgomp*.so*"), *torch.glob("lib/libgomp*.so*")]
        found = [*found, *map(str, own[:1])]
    if "libtcmalloc" not in given:
        own = [*vllm.glob("libs/libtcmalloc_minimal*.so*"), *vllm.glob("libs/libtcmalloc.so*")]
        found = [*map(str, own[:1]), *found]
    return ":".join(found)


def _folder(package: str) -> Path:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")


class ForkedEngines:
    """While entered, vLLM's EngineCores are forked. A changed LD_PRELOAD, set with vLLM's configuration, needs a new
    process; vLLM then spawns as usual.
    """

    def __init__(self) -> None:
        start_fork_server()
        self._libraries = os.environ.get("LD_PRELOAD", "")
        self._context: Any = None

    def __enter__(self) -> None:
        import vllm.v1.engine.utils as starters

        self._context = starters.get_mp_context
        starters.get_mp_context = self._choose

    def __exit__(self, *_: object) -> None:
        import vllm.v1.engine.utils as starters

        starters.get_mp_context = self._context

    def _choose(self) -> Any:
        if os.environ.get("LD_PRELOAD", "") != self._libraries:
            logger.warning("vLLM preloads %s: its processes are spawned, not forked", os.environ["LD_PRELOAD"])
            return self._context()
        return EngineContext()


class EngineProcess(ForkServerProcess):
    """Takes its parent's environment, not the fork server's."""

    def __init__(
        self, *, target: Callable[..., None], kwargs: Mapping[str, Any], name: str, daemon: bool | None = None
    ) -> None:
        environment = {**os.environ, FORKED_ENV: "1"}
        super().__init__(target=with_environment, args=(environment, target), kwargs=kwargs, name=name, daemon=daemon)


class EngineContext(ForkServerContext):
    Process = EngineProcess


def with_environment(environment: Mapping[str, str], target: Callable[..., None], **kwargs: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(**kwargs)


class WorkerProcess(ForkProcess):
    """A worker forked from EngineCore. vLLM loads plug-ins once per process, and children count."""

    def __init__(self, *, target: Callable[..., None], kwargs: Mapping[str, Any], name: str, daemon: bool) -> None:
        super().__init__(target=as_worker, args=(target,), kwargs=kwargs, name=name, daemon=daemon)


class WorkerContext(ForkContext):
    Process = WorkerProcess


def as_worker(target: Callable[..., None], **kwargs: Any) -> None:
    """Run our plug-ins in a worker, then call `target`."""
    tie_to_parent()
    own_scheduling_group()
    mark_worker_stages()
    bind_rank(int(multiprocessing.current_process().name.rpartition("-")[2]), os.environ.get(BINDING_ENV, ""))
    target(**kwargs)


def fork_workers() -> None:
    """Plug-in (pyproject.toml): a forked EngineCore forks its workers."""
    if FORKED_ENV in os.environ and multiprocessing.current_process().name.startswith(CORE_NAME):
        import vllm.v1.executor.multiproc_executor as executor

        executor.get_mp_context = WorkerContext


def bind_rank(rank: int, binding: str) -> None:
    """Bind this process to its rank's cores in `binding` (core lists joined by '|'), one thread per core. A forked
    worker has loaded OpenMP, which reads its variables only on load.
    """
    import torch

    lists = binding.split("|")
    if rank >= len(lists) or not lists[rank].replace(",", "").isdigit():
        return
    cores = set(map(int, lists[rank].split(",")))
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
