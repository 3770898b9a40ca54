"""Atomic writes of local files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file that atomically and durably replaces `path` at the block's end; its folder must exist.

    An exception in the block keeps the old file. `mode` is reduced by the umask. Raises OSError.
    """
    folder, name = os.path.split(path)
    # Unique: independent writers must not share one.
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
    sync_folder(folder or os.curdir)  # makes the rename durable


def sync_folder(folder: str) -> None:
    """Sync the folder's names to disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
