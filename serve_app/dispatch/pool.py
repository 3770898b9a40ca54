"""What dispatch needs of replicas, and its sizes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pydantic import Field

from serve_app.schema import Chunk, ChunkResult, EngineInfo, ReplicaInfo
from serve_app.settings import DispatchSizes


class ReplicaPool(Protocol):
    """The replicas, seen from the driver."""

    async def replicas(self) -> list[ReplicaInfo]:
        """Those that can work now. Raises if that is unknown."""

    async def failure(self) -> str:
        """Why no replica will come without a change of settings; empty if unknown."""

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        """Have a replica compute the chunk: all of it, or an exception.

        Raises EngineFailed when the engine died or hung, ReplicaLost when the replica is gone, anything else for the
        chunk's own failure.
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
    """`backlog_rows` bounds what a stream holds in memory. `max_attempts` are a row's own failures, or how often
    replicas may be lost under it when the last was its alone."""

    refresh_s: float = Field(0.5, gt=0, description="how often the replicas are asked for")
