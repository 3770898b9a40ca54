"""Work for a client that may leave early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def until_disconnect(
    receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]
) -> AsyncIterator[asyncio.Task[T]]:
    """The task of `work`, done, or not done because the client left; it ends with the block. `receive` is ASGI's after
    the whole body; further messages are dropped.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        yield working
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
