"""What dispatch needs of replicas; its sizes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from pydantic import Field

from serve_app.schema import Chunk, EngineInfo, Finished, ReplicaInfo
from serve_app.settings import DispatchSizes


class ReplicaPool(Protocol):
    async def replicas(self) -> list[ReplicaInfo]:
        """Replicas that can work now. Raises if unknown."""

    async def failure(self) -> str:
        """Why only changed settings can bring a replica; empty if unknown."""

    def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        """Compute the chunk on a replica; each row comes once, as it finishes. Closing stops the rest.

        Raises EngineFailed if the engine died or hung, ReplicaLost if the replica is gone, anything else for the
        chunk's own failure; rows that came before are done.
        """


class ServedModel(NamedTuple):
    """What a prompt was made for: token ids mean nothing to others, and answers of two models do not mix."""

    model: str
    tokenizer: str
    identity: str = ""

    @classmethod
    def of(cls, engine: EngineInfo) -> ServedModel:
        return cls(engine.model, engine.tokenizer, engine.identity)

    def __str__(self) -> str:
        return f"'{self.model}'" + (f" ({self.identity[:12]})" if self.identity else "")


class DispatchSettings(DispatchSizes):
    """`backlog_rows` bounds a stream's rows in memory. `max_attempts` bounds a row's own failures, and losses if it ran
    alone in the last."""

    refresh_s: float = Field(0.5, gt=0, description="how often the replicas are asked for")
