"""The processes of a stack, found by their titles and by who started them, and what outlives its owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from serve_app.serving.launch.local import marked_processes

SHARED_MEMORY = Path("/dev/shm")
# Titles of Serve's actors, as Ray sets them.
REPLICA, DRIVER = "ray::ServeReplica:replicas:Replica", "ray::ServeReplica:populations:Driver"
CONTROLLER = "ray::ServeController"


class Processes:
    """Those that inherited `marker` in their environment. Remembers which shared memory they had."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._segments: set[Path] = set()

    def all(self) -> list[psutil.Process]:
        return marked_processes(self._marker)

    def titled(self, title: str) -> list[int]:
        return [process.pid for process in self.all() if _title(process).startswith(title)]

    def listening(self, port: int) -> list[int]:
        """Those that take connections at a port."""
        found = []
        for process in self.all():
            with suppress(psutil.Error):
                if any(c.status == "LISTEN" and c.laddr.port == port for c in process.net_connections("inet")):
                    found.append(process.pid)
        return found

    def orphans(self) -> list[str]:
        """Processes that this one no longer stands above, and shared memory that none of them has any more."""
        processes = self.all()
        left = [f"{one.pid} {_title(one)[:60]}" for one in processes if os.getpid() not in _ancestors(one)]
        mapped = {segment for one in processes for segment in _mapped(one)}
        self._segments |= mapped
        return left + [str(segment) for segment in sorted(self._segments - mapped) if segment.exists()]


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _ancestors(process: psutil.Process) -> set[int]:
    with suppress(psutil.Error):
        return {parent.pid for parent in process.parents()}
    return {os.getpid()}  # it ended just now


def _mapped(process: psutil.Process) -> Iterator[Path]:
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            _, found, name = line.partition(f"{SHARED_MEMORY}/")
            if found and not name.endswith("(deleted)"):
                yield SHARED_MEMORY / name
