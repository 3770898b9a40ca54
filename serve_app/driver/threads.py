"""Threads for what blocks: files and stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# asyncio's default is cores + 4. These threads wait, for disks and object stores: a job that counts a large file must
# not keep another's commit waiting for a thread.
THREADS = 64


def use_many_threads() -> None:
    """Give the running event loop a pool of THREADS."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="blocking"))


async def to_its_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for a function that writes: a cancel waits for it, so that its write cannot come late."""
    work = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # seen: the cancel is what counts
        raise
