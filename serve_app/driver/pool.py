"""The replicas behind a Serve deployment handle."""

from __future__ import annotations

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.schema import Chunk, ChunkResult, ReplicaInfo

# A replica that takes longer to say who it is counts as unable to work.
DESCRIBE_TIMEOUT_S = 10.0


class HandlePool:
    """See `dispatch.ReplicaPool`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def replicas(self) -> list[ReplicaInfo]:
        try:
            answers = await self._handle.broadcast("describe").results_async(
                timeout_s=DESCRIBE_TIMEOUT_S, return_exceptions=True
            )
        except DeploymentUnavailableError:  # none was ready yet
            return []
        return [answer for answer in answers if isinstance(answer, ReplicaInfo)]

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        result: ChunkResult = await self._handle.run_chunk.remote(chunk, replica_id=replica_id)
        return result
