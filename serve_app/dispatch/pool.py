"""What dispatch needs of replicas, and its sizes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pydantic import Field

from serve_app.schema import Chunk, ChunkResult, EngineInfo, ReplicaInfo
from serve_app.settings import DispatchSizes


class ReplicaPool(Protocol):
    """The replicas, seen from the driver."""

    async def replicas(self) -> list[ReplicaInfo]:
        """Those that can work now. Any exception means that it could not be found out."""

    async def failure(self) -> str:
        """Why there will be no replica without a change of settings; empty if that is not known."""

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        """Have a replica compute the chunk. Any exception means that nothing of it was done.

        Raises EngineFailed when the replica's engine died or hung, and ReplicaLost when the replica itself is gone.
        Anything else is the chunk's own failure.
        """


class ServedModel(NamedTuple):
    """What a prompt is made for: its token ids mean nothing to another model or tokenizer."""

    model: str
    tokenizer: str

    @classmethod
    def of(cls, engine: EngineInfo) -> ServedModel:
        return cls(engine.model, engine.tokenizer)


class DispatchSettings(DispatchSizes):
    """`backlog_rows` bounds what a stream holds in memory. `max_attempts` are a row's own failures, or how often
    replicas may be lost under it when the last was its alone."""

    refresh_s: float = Field(0.5, gt=0, description="how often the replicas are asked for")
