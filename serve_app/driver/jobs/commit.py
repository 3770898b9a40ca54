"""Group commit: whatever finished while one segment was written waits for the next.

So a slow store gets few large segments and a fast one smaller ones, and neither stops the replicas. Long answers make a
segment of few rows.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from serve_app.dispatch.memory import Holding
from serve_app.driver.store.retries import while_store_is_away
from serve_app.schema import Outcome

# Finished rows may pile up to so many commits before whoever brings more must wait.
PILE = 32
# A segment of this share of the memory is large enough; writing it takes a few times as much.
SEGMENT_SHARE = 1 / 16


class Committer:
    """Calls `write` in a thread, one call at a time: after `rows` outcomes or `seconds`, whichever comes first. What is
    not written yet counts as held.

    A write that raises StoreError is tried again for `patience_s`; `write` must not add a second time what it has
    already added.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Outcome]], None],
        holding: Holding,
        *,
        rows: int,
        seconds: float,
        patience_s: float = 0.0,
    ) -> None:
        self._write = write
        self._holding = holding
        self._segment_bytes = int(holding.memory.limit * SEGMENT_SHARE)
        self._rows = rows
        self._seconds = seconds
        self.patience_s = patience_s
        self._broken: Exception | None = None
        self._pending: deque[tuple[Outcome, int]] = deque()  # with their bytes
        self._pending_bytes = 0
        self._full = asyncio.Event()
        self._written = asyncio.Condition()
        self._writing: asyncio.Task[None] | None = None

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        """Hand outcomes over; returns before they are committed, and waits only while too many are not."""
        self.add(outcomes)
        if self._too_many():
            async with self._written:
                await self._written.wait_for(lambda: not self._too_many())

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Hand outcomes over, however many are not committed."""
        sizes = [outcome_bytes(outcome) for outcome in outcomes]
        self._pending.extend(zip(outcomes, sizes, strict=True))
        self._pending_bytes += sum(sizes)
        self._holding.change(sum(sizes))
        self._look()

    def _look(self) -> None:
        if len(self._pending) >= self._rows or self._pending_bytes >= self._segment_bytes or self._too_many():
            self._full.set()

    def _too_many(self) -> bool:
        return len(self._pending) > PILE * self._rows or not self._holding.may_take(0)

    async def run(self) -> None:
        """Commit for ever. Raises what `write` raises."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):  # not wait_for, which can swallow a cancel (cpython#86296)
                    await self._full.wait()
            self._full.clear()
            if self._pending:  # once: rows that come one by one are not to become segments of one row
                await self._write_next()
                self._look()

    async def flush(self) -> None:
        """Commit all that was put. A cancel leaves no writer behind that another write could cross: the write goes
        on, and whoever comes next waits for it. Raises again what a write has raised in the end."""
        while self._pending or self._writing is not None:
            await self._write_next()

    async def _write_next(self) -> None:
        """Wait for the write that goes on, else for one of what was put."""
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
        outcomes: list[Outcome] = []
        size = 0
        while self._pending and size <= self._segment_bytes:
            outcome, outcome_size = self._pending.popleft()
            outcomes.append(outcome)
            size += outcome_size
        self._pending_bytes -= size
        try:
            await while_store_is_away(
                lambda: asyncio.to_thread(self._write, outcomes), patience_s=lambda: self.patience_s
            )
        except Exception as error:
            self._broken = error
            raise
        self._holding.change(-size)
        async with self._written:
            self._written.notify_all()


def outcome_bytes(outcome: Outcome) -> int:
    size = len(outcome.error) if outcome.error else 0
    answer = outcome.value and (outcome.value.get("text") or outcome.value.get("body"))
    if not answer:
        return size
    if isinstance(answer, str):
        return size + sys.getsizeof(answer)
    # A response's body as it came, or parsed where it is another job's.
    return size + len(msgspec.json.encode(answer))
