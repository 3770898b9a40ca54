"""Group commit: whatever finished while one segment was written goes into the next.

So a slow store gets few large segments and a fast one many small ones, and neither stops the replicas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from serve_app.driver.store.retries import while_store_is_away
from serve_app.schema import Outcome

# Finished rows may pile up to so many commits before whoever brings more must wait.
PILE = 32


class Committer:
    """Calls `write` in a thread, one call at a time: after `rows` outcomes or `seconds`, whichever comes first.

    A write that raises StoreError is tried again for `patience_s`; `write` must not add a second time what it has
    already added.
    """

    def __init__(
        self, write: Callable[[Sequence[Outcome]], None], *, rows: int, seconds: float, patience_s: float = 0.0
    ) -> None:
        self._write = write
        self._rows = rows
        self._seconds = seconds
        self.patience_s = patience_s
        self._broken: Exception | None = None
        self._pending: list[Outcome] = []
        self._full = asyncio.Event()
        self._written = asyncio.Condition()
        self._writing: asyncio.Task[None] | None = None

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        """Hand outcomes over; returns before they are committed, and waits only while too many are not."""
        self._pending += outcomes
        if len(self._pending) >= self._rows:
            self._full.set()
        if len(self._pending) > PILE * self._rows:
            async with self._written:
                await self._written.wait_for(lambda: len(self._pending) <= PILE * self._rows)

    async def run(self) -> None:
        """Commit for ever. Raises what `write` raises."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):  # not wait_for, which can swallow a cancel (cpython#86296)
                    await self._full.wait()
            self._full.clear()
            await self.flush()

    async def flush(self) -> None:
        """Commit all that was put. A cancel leaves no writer behind that another write could cross: the write goes
        on, and whoever comes next waits for it. Raises again what a write has raised in the end."""
        while self._pending or self._writing is not None:
            if self._broken is not None:
                raise self._broken
            if self._writing is None:
                self._writing = asyncio.create_task(self._write_pending())
            writing = self._writing
            try:
                await asyncio.shield(writing)
            finally:
                if writing.done() and self._writing is writing:
                    self._writing = None

    async def _write_pending(self) -> None:
        outcomes, self._pending = self._pending, []
        try:
            await while_store_is_away(
                lambda: asyncio.to_thread(self._write, outcomes), patience_s=lambda: self.patience_s
            )
        except Exception as error:
            self._broken = error
            raise
        async with self._written:
            self._written.notify_all()
