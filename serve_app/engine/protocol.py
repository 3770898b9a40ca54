"""The engine's contract: all that servers and drivers use of an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from serve_app.schema import Chunk, Completion, EngineInfo

# ASGI 3.0: scope, receive, send.
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class Engine(Protocol):
    """One model on one set of devices. Coroutines all run in the event loop that ran `start`."""

    async def start(self) -> None:
        """Load the model and return once a token was generated.

        Raises BadSettings, ModelNotFound or NotEnoughMemory for what the user can mend, EngineFailed otherwise.
        """

    @property
    def info(self) -> EngineInfo:
        """What runs here; valid after `start`."""

    def app(self) -> ASGIApp:
        """The OpenAI-compatible HTTP application over this engine; valid after `start`."""

    async def run(self, chunk: Chunk) -> tuple[Completion, ...]:
        """One completion a prompt, in order. A prompt that the engine refuses gets a completion with `error`.

        Raises EngineFailed when the engine is lost; nothing of the chunk is then done.
        """

    @property
    def waiting(self) -> int:
        """All requests in the engine's queue, not yet scheduled."""

    async def check_health(self) -> None:
        """Return if the engine makes progress. Raises EngineFailed when it died or hangs."""

    async def shutdown(self) -> None:
        """Stop the engine and every process it started. Idempotent, at any time."""
