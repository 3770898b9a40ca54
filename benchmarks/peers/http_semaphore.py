"""One chat request a row over HTTP, 64 open at once: what a careful asyncio client does with any OpenAI server.

Knows HTTP only, as http32.py does; here the next row is sent as soon as any of those open is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.peers import Case
from benchmarks.peers.http32 import Ask, Body, Http32
from serve_app.schema import Row

OPEN_REQUESTS = 64


class HttpSemaphore(Http32):
    """Rows scored one a request behind a semaphore of OPEN_REQUESTS."""

    def __init__(self, base_url: str, case: Case) -> None:
        super().__init__(base_url, case, generate=False)

    async def _flow(self, rows: Sequence[Row], ask: Ask) -> list[Body | None]:
        semaphore = asyncio.Semaphore(OPEN_REQUESTS)

        async def one(row: Row) -> Body | None:
            async with semaphore:
                return await ask(row)

        return list(await asyncio.gather(*(one(row) for row in rows)))
