"""Limits of keys over all replicas.

gate ─> SharedLimits ┬─> Counters in one Ray actor      every replica's requests
                     └─> Counters in this process       this replica's own, used while the actor is away
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import ray

from serve_app.serving.gate.keys import Key
from serve_app.serving.gate.limits import Counters, Standing

logger = logging.getLogger(__name__)

# The actor takes 1 to 2 ms; requests wait at most this long.
ASK_TIMEOUT_S = 0.5
# The first call may start the actor; without it each replica admits the whole limit.
FIRST_ASK_TIMEOUT_S = 10.0
# Pause in asking after a failure.
AWAY_S = 5.0
ACTOR_NAME, ACTOR_NAMESPACE = "serve-app-limits", "serve_app"


class Remote(Protocol):
    """Remote counters. Any exception means no answer."""

    async def admit(self, name: str, requests_per_minute: int | None, tokens_per_minute: int | None) -> Standing: ...

    def charge(self, name: str, tokens: int) -> None:
        """Does not wait."""


class SharedLimits:
    """The gate's limits. Also counts locally, for use while remote counters are away."""

    def __init__(
        self,
        remote: Remote,
        *,
        timeout_s: float = ASK_TIMEOUT_S,
        first_timeout_s: float = FIRST_ASK_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._remote = remote
        self._patience_s = first_timeout_s
        self._local = Counters(clock)
        self._timeout_s = timeout_s
        self._clock = clock
        self._away_until = 0.0
        self._told = False

    async def admit(self, key: Key) -> Standing:
        limits = key.name, key.requests_per_minute, key.tokens_per_minute
        if self._clock() >= self._away_until:
            try:
                async with asyncio.timeout(self._patience_s):
                    standing = await self._remote.admit(*limits)
            except Exception as error:
                self._go_alone(error)
            else:
                self._patience_s = self._timeout_s
                self._told = False
                if standing.refused_by is None:
                    self._local.admit(key.name, None, None)
                return standing
        return self._local.admit(*limits)

    def charge(self, key: Key, tokens: int) -> None:
        self._local.charge(key.name, tokens)
        with suppress(Exception):
            self._remote.charge(key.name, tokens)

    def _go_alone(self, error: Exception) -> None:
        waited_s, self._patience_s = self._patience_s, self._timeout_s
        self._away_until = self._clock() + AWAY_S
        if not self._told:
            self._told = True
            reason = f"no answer in {waited_s:g} s" if isinstance(error, TimeoutError) else repr(error)
            logger.warning("the shared counters of API keys cannot be asked (%s): this replica counts alone", reason)


class RayCounters:
    """`Counters` in a named actor, made on first need. Detached to outlive its maker; Ray restarts it from zero."""

    def __init__(self) -> None:
        self._making: asyncio.Future[Any] | None = None

    async def admit(self, name: str, requests_per_minute: int | None, tokens_per_minute: int | None) -> Standing:
        if self._making is None:
            self._making = asyncio.ensure_future(asyncio.to_thread(_actor))  # blocks on the GCS
        try:
            # One caller's leaving must not end it.
            actor = await asyncio.shield(self._making)
            standing: Standing = await actor.admit.remote(name, requests_per_minute, tokens_per_minute)
        except (asyncio.CancelledError, TimeoutError):
            raise
        except Exception:
            self._making = None
            raise
        return standing

    def charge(self, name: str, tokens: int) -> None:
        if self._making is not None and self._making.done():
            self._making.result().charge.remote(name, tokens)


def _actor() -> Any:
    remote = ray.remote(Counters)
    return remote.options(
        name=ACTOR_NAME,
        namespace=ACTOR_NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
    ).remote()
