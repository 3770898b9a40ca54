from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
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

    def run(self, chunk: Chunk) -> AsyncGenerator[dict[int, Completion]]:
        """Completions by the prompt's place in the chunk, each prompt's once, as they finish. A refused prompt's
        completion has `error`. Raises EngineFailed when the engine is lost, with what was not yielded undone. Closing
        aborts the rest.
        """

    @property
    def waiting(self) -> int:
        """Requests queued in the engine, not yet scheduled."""

    async def check_health(self) -> None:
        """Return if the engine makes progress. Raises EngineFailed if it died or hangs."""

    async def shutdown(self) -> None:
        """Stop the engine and its processes. Idempotent, at any time."""
