"""Bounds the bytes of prompts and answers that are held at once.

Dynamic thresholds (Choudhury and Hahne, 1998): everyone may hold as much as is free, so that one alone gets half of the
limit, two get a third each, and a newcomer always finds room. Who holds nothing may take anything, so that a row larger
than the limit passes alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from serve_app.schema import Completion


class Memory:
    """`limit` bytes for all holders of one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._waiting: set[Callable[[], object]] = set()

    def when_freed(self, call: Callable[[], object]) -> None:
        """Call once, soon after something was freed."""
        self._waiting.add(call)

    def wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for call in waiting:
            asyncio.get_running_loop().call_soon(call)


class Holding:
    """The bytes of one holder."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.held = 0
        self._closed = False

    def may_take(self, size: int) -> bool:
        """Whether it has, with `size` more, at most what is free then."""
        return not self.held or self.held + size <= self.memory.limit - self.memory.held - size

    def change(self, size: int) -> None:
        """Take, or free if negative. Without effect once closed."""
        if self._closed:
            return
        self.held += size
        self.memory.held += size
        if size < 0:
            self.memory.wake()

    def close(self) -> None:
        self.change(-self.held)
        self._closed = True


def answer_bytes(completion: Completion) -> int:
    size = sys.getsizeof(completion.text) if completion.text else 0
    return size + len(completion.response.body) if completion.response else size
