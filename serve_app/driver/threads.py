"""Threads for blocking calls: files and stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# asyncio's default is cores + 4. These threads mostly wait, and counting a large file must not delay another job's
# commit.
THREADS = 64


def use_large_thread_pool() -> None:
    """Give the running event loop a pool of THREADS."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="blocking"))


async def finish_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for a function that writes: a cancel waits for its end, so that no write comes late."""
    work = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # marks it as retrieved; the cancel is raised
        raise
