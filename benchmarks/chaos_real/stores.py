"""The two stores of a stack, a folder and an S3 server, and how they fail."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs

from benchmarks.chaos.flaky_store import FlakyStore

LOCAL, REMOTE = "local", "remote"
SIZE_MIB = 64
# Of each message on a slow connection.
DELAY_S = 1.0
Undo = Callable[[], None]


class Stores:
    """Context manager. The folder is a small tmpfs where this user may mount one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "store"
        self._flaky = FlakyStore()
        self.mounts = False

    def __enter__(self) -> Stores:
        self._folder.mkdir(parents=True)
        self.mounts = _mount("-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(self._folder))
        self._flaky.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._flaky.__exit__()
        if self.mounts:
            _unmount(str(self._folder))

    def url(self, kind: str) -> str:
        """As the driver is told."""
        return str(self._folder) if kind == LOCAL else self._flaky.url("chaos")

    def open(self, kind: str, job: str) -> tuple[Any, str]:
        """Filesystem and path of a job, past what fails between the driver and the store."""
        if kind == LOCAL:
            return pyarrow.fs.LocalFileSystem(), f"{self._folder}/{job}"
        filesystem, path = pyarrow.fs.FileSystem.from_uri(self._flaky.direct_url("chaos"))
        return filesystem, f"{path}/{job}"

    def fill(self, driver: int) -> Undo:
        """No byte can be written any more. Without a mount of our own: by the driver, whose files are limited."""
        if not self.mounts:
            process = psutil.Process(driver)
            _, most = process.rlimit(resource.RLIMIT_FSIZE)
            process.rlimit(resource.RLIMIT_FSIZE, (0, most))
            return lambda: _lift(process, most)
        ballast = self._folder / "ballast"
        with open(ballast, "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**20))
        return ballast.unlink

    def forbid_writes(self) -> Undo:
        """The folder is mounted over itself, read-only; what is open stays writable."""
        path = str(self._folder)
        if not (_mount("--bind", path, path) and _mount("-o", "remount,bind,ro", path)):
            raise NotImplementedError("a read-only store needs the right to mount")
        return lambda: _unmount(path)

    def delay(self) -> Undo:
        self._flaky.delay_s = DELAY_S

        def undo() -> None:
            self._flaky.delay_s = 0.0

        return undo

    def cut(self, seconds: float) -> Undo:
        self._flaky.cut(seconds)
        return lambda: None


def _lift(process: psutil.Process, most: int) -> None:
    with suppress(psutil.Error):
        process.rlimit(resource.RLIMIT_FSIZE, (most, most))


def _unmount(path: str) -> None:
    subprocess.run(["umount", "-l", path], check=True)  # at once, whatever is open in it


def _mount(*arguments: str) -> bool:
    if os.geteuid() != 0:
        return False
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
