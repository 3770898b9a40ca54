"""Limits requests and tokens per minute."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

# OpenAI may enforce limits per second (guide: 60,000 a minute "may be enforced as 1,000 requests/second"), so unused
# amounts carry over only this long.
BURST_S = 1.0


class Rate:
    """A limit per minute by the generic cell rate algorithm (ITU-T I.371). The only state is the time when all usage is
    paid off. A minute has at most the limit, plus `BURST_S` of it or the largest single amount."""

    def __init__(self, per_minute: float | None) -> None:
        self._s_each = 60.0 / per_minute if per_minute else 0.0
        self._paid_at = -math.inf

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; zero or less is now."""
        return self._paid_at - now - max(0.0, BURST_S - amount * self._s_each)

    def take(self, amount: float, now: float) -> None:
        """Take the amount; negative returns it."""
        self._paid_at = max(self._paid_at, now) + amount * self._s_each


class Limits:
    """First come, first served."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests, self._tokens = Rate(requests_per_minute), Rate(tokens_per_minute)
        self._paused_until = -math.inf
        self._stopped = False
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def admit(self, tokens: float) -> None:
        """Wait until one request of `tokens` tokens may go."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while (wait_s := self._wait_s(tokens, loop.time())) > 1e-6:  # less could round to none
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
            self._requests.take(1, loop.time())
            self._tokens.take(tokens, loop.time())

    def _wait_s(self, tokens: float, now: float) -> float:
        if self._stopped:
            return 0.0
        return max(self._paused_until - now, self._requests.wait_s(1, now), self._tokens.wait_s(tokens, now))

    def settle(self, estimated: float, used: float) -> None:
        """A request of `estimated` tokens took `used`."""
        self._tokens.take(used - estimated, asyncio.get_running_loop().time())
        self._changed.set()

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)

    def stop(self) -> None:
        """Release all waiters; nothing will be sent."""
        self._stopped = True
        self._changed.set()
