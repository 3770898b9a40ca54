"""Local files that are there whole, or as they were before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, whole and durable, once the block is left; its folder must exist.

    An exception in the block leaves what was there. `mode` is the file's, less the umask. Raises OSError.
    """
    folder, name = os.path.split(path)
    # A name of its own: writers that do not know of each other must not share one.
    temporary = os.path.join(folder, f".{name}.{uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb", opener=lambda file, flags: os.open(file, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(folder or os.curdir)  # the rename itself


def sync_folder(folder: str) -> None:
    """Return once the names in the folder are on disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
