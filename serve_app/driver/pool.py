"""The replicas behind a Serve deployment handle."""

from __future__ import annotations

import asyncio

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.schema import Chunk, ChunkResult, ReplicaInfo
from serve_app.settings import REPLICAS_APP

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

    async def failure(self) -> str:
        """Why no replica will come up, as Serve gave up on them; empty as long as it has not."""
        status = (await asyncio.to_thread(serve.status)).applications.get(REPLICAS_APP)
        if status is None or status.status != "DEPLOY_FAILED":
            return ""
        told = [status.message, *(deployment.message for deployment in status.deployments.values())]
        lines: list[str] = [line for text in told for line in text.splitlines() if line.strip()]
        ours = [line.partition("serve_app.errors.")[2] for line in lines if "serve_app.errors." in line]
        return (ours or lines or ["no reason was given"])[-1]

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        result: ChunkResult = await self._handle.run_chunk.remote(chunk, replica_id=replica_id)
        return result
