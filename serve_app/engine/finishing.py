"""Work that runs side by side, and whose results are handed on as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

# A result waits for others this share of the time that it took: handing one on costs a message, and a place in a window
# that is free a little later costs less.
SHARE, LEAST_S, MOST_S = 0.1, 0.01, 0.25


async def as_finished(works: Sequence[Coroutine[Any, Any, T]]) -> AsyncGenerator[dict[int, T]]:
    """Run all of `works` at once; yields results by their place, those of about one moment together.

    Raises a work's error after all results that were there with it. Leaving early cancels the rest.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    done: list[tuple[int, asyncio.Task[T]]] = []
    some, every = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(work) for work in works]
    left = len(tasks)

    def note(place: int, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # nobody may ask for it: asyncio would log that
        done.append((place, task))
        some.set()
        if len(done) == left:
            every.set()

    for place, task in enumerate(tasks):
        task.add_done_callback(partial(note, place))
    try:
        while left:
            await some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(MOST_S, max(LEAST_S, SHARE * (clock() - began)))):
                    await every.wait()
            now, done = done, []
            some.clear()
            left -= len(now)
            broken = [task for _, task in now if task.cancelled() or task.exception()]
            if results := {place: task.result() for place, task in now if task not in broken}:
                yield results
            if broken:
                broken[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
