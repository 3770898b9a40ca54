"""Trying again while the store is away: stamina's loop, with our pauses, limits and log line."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from serve_app.errors import JobNotFound, StoreError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Pauses of 0.5, 1, 2, … 15 s, and up to half a second more, so that all jobs do not come back at once.
_retrying = stamina.AsyncRetryingCaller(attempts=None, timeout=None, wait_initial=0.5, wait_max=15.0, wait_jitter=0.5)


async def while_store_is_away(
    call: Callable[[], Awaitable[T]], *, patience_s: Callable[[], float] = lambda: math.inf
) -> T:
    """What `call` gives; while it raises StoreError it is called again, until `patience_s` after the beginning.

    JobNotFound is raised at once: the store is there and the job is not.

    `patience_s` is asked after each failure, as it may change meanwhile; without it the trying never ends.
    Raises all else that `call` raises at once, and in the end the last StoreError.
    """
    began = time.monotonic()

    def again(error: Exception) -> bool:
        away = isinstance(error, StoreError) and not isinstance(error, JobNotFound)
        return away and time.monotonic() - began < patience_s()

    return await _retrying(again, call)


def log_retries() -> None:
    """Have this process log each retry as a sentence, in place of stamina's own event."""
    stamina.instrumentation.set_on_retry_hooks([_log])


def _log(details: stamina.instrumentation.RetryDetails) -> None:
    logger.warning("trying again in %.1f s: %s", details.wait_for, details.caused_by)
