"""The replica: one engine behind vLLM's own OpenAI application and a chunk method for the driver."""

from __future__ import annotations

import os

import ray
from ray import serve

from serve_app.engine.protocol import ASGIApp, Engine
from serve_app.schema import Chunk, ChunkResult, ReplicaInfo
from serve_app.serving.sharding import Answer, HandlePeers, Piece, Sharding, answer_piece
from serve_app.settings import REPLICA_DEPLOYMENT, ReplicaSettings


@serve.deployment(
    name=REPLICA_DEPLOYMENT,
    # The engine queues and batches by itself; Serve's own limit only has to be above what it should see.
    max_ongoing_requests=512,
    # A start that failed for a wrong setting fails again: tell the user soon.
    max_constructor_retry_count=2,
    health_check_period_s=5,
    # Above HealthSettings.stall_timeout_s, so that the replica itself says what is wrong.
    health_check_timeout_s=90,
    graceful_shutdown_timeout_s=20,
    # The driver asks each replica once a second who it is; vLLM logs its own requests.
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class Replica:
    """Serves HTTP by the engine's application, and chunks of a population by handle.

    The application is bound late (`__serve_build_asgi_app__`), as it exists only once the engine runs; so a
    replica counts as ready only after it generated a token.
    """

    async def __init__(self, settings: ReplicaSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        context = serve.get_replica_context()
        self._sharding = settings.sharding
        self._replica_id = context.replica_id.unique_id
        assigned = ray.get_runtime_context().get_assigned_resources()
        self._engine = build_engine(settings, assigned_cpus=assigned.get("CPU", 1), replicas=context.world_size)
        await self._engine.start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        context = serve.get_replica_context()
        peers = HandlePeers(serve.get_deployment_handle(context.deployment, context.app_name))
        return Sharding(self._engine.app(), peers, self._replica_id, self._sharding)

    async def run_chunk(self, chunk: Chunk, *, replica_id: str | None = None) -> ChunkResult:
        """Complete every prompt of the chunk. `replica_id` is for the router; the result says who ran it.

        Raises EngineFailed when the engine is lost; nothing of the chunk is then done.
        """
        completions = await self._engine.run(chunk)
        return ChunkResult(chunk.chunk_id, await self.describe(), completions, self._engine.waiting)

    async def complete(self, piece: Piece, *, replica_id: str | None = None) -> Answer:
        """Answer a part of a peer's HTTP request (`sharding.py`). `replica_id` is for the router."""
        return await answer_piece(self._engine.app(), piece, self._replica_id)

    async def describe(self, *, replica_id: str | None = None) -> ReplicaInfo:
        """Who runs here. `replica_id` is for the router."""
        context = ray.get_runtime_context()
        gpus = tuple(map(str, context.get_accelerator_ids().get("GPU", ())))
        return ReplicaInfo(self._replica_id, context.get_node_id(), os.getpid(), gpus, self._engine.info)

    async def check_health(self) -> None:
        """Serve calls this, and replaces the replica after it failed three times in a row."""
        await self._engine.check_health()

    async def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):
            await engine.shutdown()


def build_engine(settings: ReplicaSettings, *, assigned_cpus: float, replicas: int) -> Engine:
    """The engine that the settings ask for, not yet started.

    Raises BadSettings or UnknownOption for options that vLLM does not have.
    """
    if settings.simulated is not None:
        from serve_app.engine.simulated import SimulatedEngine

        return SimulatedEngine(settings.engine, settings.simulated)
    from serve_app.engine.vllm import VLLMEngine

    return VLLMEngine(settings.engine, settings.health, assigned_cpus=assigned_cpus, replicas=replicas)
