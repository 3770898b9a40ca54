"""What the server's processes hold: memory, descriptors and threads of each, and what lies in /dev/shm and on disks.

Knows a process by what Ray, Serve and vLLM call it, and an engine's by whose child it is; nothing is asked of them.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from serve_app.engine.running import tracks_resources

SHARED = Path("/dev/shm")
# In a command line: what the process is.
ROLES = {
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "dashboard/agent": "dashboard agent",
    "runtime_env/agent": "runtime env agent",
    "dashboard/dashboard.py": "dashboard",
    "autoscaler": "autoscaler monitor",
    "log_monitor.py": "log monitor",
    "ray::ServeController": "controller",
    "ray::ProxyActor": "proxy",
    "ray::HAProxy": "HAProxy manager",
    "haproxy": "HAProxy",
    "serve-app-limits": "limits",
    "ray::Counters": "limits",
    "ray::IDLE": "idle worker",
    "/serve run": "serve run",
}
_mapped = re.compile(r"/dev/shm/(\S+)").findall
_replica = re.compile(r"ray::ServeReplica:[^:]+:(\w+)").search


class Being(NamedTuple):
    """A process, known again even if its number is used twice."""

    role: str
    pid: int
    started: float


class Usage(NamedTuple):
    rss_bytes: int
    descriptors: int
    threads: int


class Look(NamedTuple):
    """All of it at one moment. `shared` are the files in /dev/shm that no other program uses, `temporary` the
    temporary files.
    """

    at_s: float
    processes: dict[Being, Usage]
    shared: frozenset[str]
    temporary: frozenset[str]


class Census:
    """Looks at the processes that `list_processes` returns."""

    def __init__(self, list_processes: Callable[[], Sequence[psutil.Process]], temporary: Path) -> None:
        self._list = list_processes
        self._temporary = temporary

    def look(self, *, whole: bool = True) -> Look:
        """`whole`: with files, which takes a tenth of a second."""
        processes: dict[Being, Usage] = {}
        for process in self._list():
            with suppress(psutil.Error, OSError), process.oneshot():
                being = Being(role_of(process), process.pid, process.create_time())
                usage = Usage(process.memory_info().rss, process.num_fds(), process.num_threads())
                processes[being] = usage
        shared = shared_memory({one.pid for one in processes}) if whole else frozenset()
        return Look(time.monotonic(), processes, shared, files_below(self._temporary) if whole else frozenset())


class Sampler(threading.Thread):
    """Looks every `every_s` while the block runs; `looks` has all of them."""

    def __init__(self, census: Census, every_s: float) -> None:
        super().__init__(daemon=True)
        self.looks: list[Look] = []
        self._census = census
        self._every_s = every_s
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._every_s):
            self.looks.append(self._census.look(whole=False))

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._ended.set()
        self.join()


def role_of(process: psutil.Process) -> str:
    """What it is: Ray's and Serve's by their names, an engine's by its parents."""
    command = " ".join(process.cmdline())
    if found := _replica(command):
        return found[1].lower()
    for mark, role in ROLES.items():
        if mark in command:
            return role
    if tracks_resources(process):
        return "resource tracker"
    parents = [" ".join(parent.cmdline()) for parent in process.parents()]
    depth = next((depth for depth, parent in enumerate(parents) if _replica(parent)), None)
    if depth is None:
        return (process.name() or "other").lower()
    return ("EngineCore", "engine worker")[min(depth, 1)]


def shared_memory(ours: Collection[int]) -> frozenset[str]:
    """Files in /dev/shm that only these processes use, or none: a file that outlived its users."""
    others: set[str] = set()
    for process in psutil.process_iter():
        if process.pid not in ours:
            with suppress(OSError):
                others.update(_mapped(Path(f"/proc/{process.pid}/maps").read_text()))
    return frozenset(path.name for path in SHARED.iterdir()) - others


def files_below(folder: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
