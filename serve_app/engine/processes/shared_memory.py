"""Ends an engine's shared memory with its last process.

A named segment stays in /dev/shm until somebody unlinks it. vLLM's processes do that as they exit: after a SIGKILL
168 MB or more per engine and 4 MB per rank of a CPU host stay for good. A mapping needs no name, so the names go as
soon as every process of a started engine has mapped them, and the kernel frees the memory with its last user.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

SHARED_MEMORY = Path("/dev/shm")
# Queues between vLLM's processes (`multiprocessing`), and the ranks' buffers on a CPU host (vLLM's csrc/cpu/shm.cpp).
PREFIXES = ("psm_", "vllm_dist_")


def unlink_mapped(processes: Iterable[psutil.Process]) -> list[Path]:
    """Unlink what these processes have mapped, which stays theirs; returns it. Nobody else can map it afterwards."""
    found = sorted({segment for process in processes for segment in _mapped(process.pid)})
    for segment in found:
        segment.unlink(missing_ok=True)
    return found


def _mapped(pid: int) -> Iterator[Path]:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            _, _, name = line.partition(f"{SHARED_MEMORY}/")
            if name.startswith(PREFIXES) and not name.endswith(" (deleted)"):
                yield SHARED_MEMORY / name


def expect_unlinked() -> None:
    """Have this process take an unlinked segment for granted when it unlinks one of its own."""
    unlink = SharedMemory.unlink
    if hasattr(unlink, "__wrapped__"):
        return

    def unlink_if_there(self: Any) -> None:
        try:
            unlink(self)
        except FileNotFoundError:
            resource_tracker.unregister(self._name, "shared_memory")

    unlink_if_there.__wrapped__ = unlink  # type: ignore[attr-defined]
    SharedMemory.unlink = unlink_if_there  # type: ignore[method-assign]
