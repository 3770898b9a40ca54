from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from serve_app.schema import Chunk, Completion, EngineInfo

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class Engine(Protocol):
    """One model on one set of devices. All coroutines run in the event loop of `start`."""

    async def start(self) -> None:
        """Load the model and generate a token.

        Raises BadSettings, ModelNotFound or NotEnoughMemory for what the user can fix, else EngineFailed.
        """

    @property
    def info(self) -> EngineInfo:
        """What runs here; valid after `start`."""

    def app(self) -> ASGIApp:
        """The OpenAI-compatible HTTP application; valid after `start`."""

    async def run(self, chunk: Chunk) -> tuple[Completion, ...]:
        """One completion per prompt, in order. A refused prompt's completion has `error`. Raises EngineFailed when the
        engine is lost, with the whole chunk undone.
        """

    @property
    def waiting(self) -> int:
        """Requests queued in the engine, not yet scheduled."""

    async def check_health(self) -> None:
        """Return if the engine makes progress. Raises EngineFailed if it died or hangs."""

    async def shutdown(self) -> None:
        """Stop the engine and its processes. Idempotent, at any time."""
