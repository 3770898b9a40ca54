"""The replica: an engine behind vLLM's OpenAI application, and methods for peers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import ray
from ray import serve
from starlette.types import Message

from serve_app.dispatch.replicas import ROWS
from serve_app.engine.metrics import ChunkMetrics, NodeMetrics
from serve_app.engine.protocol import ASGIApp, Engine
from serve_app.peers.listing import DESCRIBE, Listing
from serve_app.peers.peer import Peer
from serve_app.peers.server import Method, Server
from serve_app.schema import Chunk, Completion, ReplicaInfo
from serve_app.serving import telemetry
from serve_app.serving.gate import accounting
from serve_app.serving.gate.middleware import Gate
from serve_app.serving.haproxy.environment import direct_ingress
from serve_app.serving.logs import keep_serves_log
from serve_app.serving.requests.asgi import Answer, HttpRequest, TokenCounts, call_app, forward
from serve_app.serving.requests.http_rows import answer_requests
from serve_app.serving.requests.sessions import FORWARD, SessionRelay
from serve_app.serving.requests.sharding import COMPLETE, ListedPeers, Sharding
from serve_app.serving.routes import add_routes, close_admin_routes
from serve_app.settings import REPLICA_DEPLOYMENT, ReplicaSettings


@serve.deployment(
    name=REPLICA_DEPLOYMENT,
    # The engine queues; Serve's limit must only be higher.
    max_ongoing_requests=512,
    # Wrong settings always fail: report soon.
    max_constructor_retry_count=2,
    health_check_period_s=5,
    # Well above the 5 s of a check (engine/health/check.py). Serve replaces a frozen replica after three of these.
    health_check_timeout_s=30,
    # A leaving replica finishes its streams.
    graceful_shutdown_timeout_s=600,
    # The driver polls every second; vLLM logs requests.
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class Replica:
    """Serves HTTP by the engine's application, and population chunks to the driver (`peers`).

    `__serve_build_asgi_app__` binds the application late, so a replica is ready only after generating a token.
    """

    async def __init__(self, settings: ReplicaSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        context = serve.get_replica_context()
        self._sharding = settings.sharding
        self._access = settings.access
        self._affinity = settings.routing.session_affinity
        self._replica_id = context.replica_id.unique_id
        assigned = ray.get_runtime_context().get_assigned_resources()
        settings = settings.model_copy(update={"engine": telemetry.configure(settings.engine, self._replica_id)})
        self._admin_routes = settings.admin_routes
        self._metrics = ChunkMetrics()
        self._engine = build_engine(settings, assigned_cpus=assigned.get("CPU", 1), replicas=context.world_size)
        with keep_serves_log():
            await self._engine.start()
        methods = {
            ROWS: Method(Chunk, self._peer_rows),
            COMPLETE: Method(HttpRequest, self._peer_complete),
            FORWARD: Method(HttpRequest, self._peer_forward),
            DESCRIBE: Method(type(None), self._peer_describe),
        }
        self._server = Server(methods, ray.util.get_node_ip_address())
        await self._server.start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        peers = ListedPeers(Listing(handle, context.app_name))
        self._relay = SessionRelay(peers, self._replica_id, self._peer_forward)
        app: Any = self._engine.app()
        add_routes(app, NodeMetrics().scrape)
        close_admin_routes(app, self._admin_routes)
        sharding = Sharding(app, peers, self._replica_id, self._sharding)
        self._asgi = Gate(telemetry.traced(sharding), self._access, "inference")
        return self._asgi

    async def peer(self, node_id: str) -> Peer:
        """Where a caller on that node asks this replica by name."""
        own = await self.describe()
        return Peer(own, await self._server.url(same_node=node_id == own.node_id), self._server.token)

    async def describe(self) -> ReplicaInfo:
        context = ray.get_runtime_context()
        gpus = tuple(map(str, context.get_accelerator_ids().get("GPU", ())))
        return ReplicaInfo(self._replica_id, context.get_node_id(), os.getpid(), gpus, self._engine.info)

    async def forward(self, request: HttpRequest, session: str = "") -> AsyncIterator[list[Message]]:
        """For a model of several. Serve's own proxy has its handles choose the session's replica."""
        relayed = session and self._affinity and direct_ingress(os.environ)
        here = self._relay.forward(request, session) if relayed else self._peer_forward(request)
        async with aclosing(here) as answer:  # closing aborts at once
            async for messages in answer:
                yield messages

    async def complete(self, request: HttpRequest) -> Answer:
        """The engine's own answer."""
        with accounting.use(accounting.Account(self._access.max_prompt_tokens)) as account:
            answer = await call_app(self._engine.app(), request, self._replica_id)
        return msgspec.structs.replace(answer, tokens=TokenCounts(account.prompt_tokens, account.completion_tokens))

    # --- what peers call ---

    async def _peer_rows(self, chunk: Chunk) -> AsyncGenerator[tuple[dict[int, Completion], int]]:
        """Each prompt's completion once, as they finish. Raises EngineFailed when the engine is lost, with what was not
        yielded undone.
        """
        started = time.perf_counter()
        async with aclosing(self._answer(chunk) if chunk.path else self._engine.run(chunk)) as rows:
            async for completions in rows:
                self._metrics.count(completions.values())
                yield completions, self._engine.waiting
        self._metrics.chunk_seconds(time.perf_counter() - started)

    def _answer(self, chunk: Chunk) -> AsyncGenerator[dict[int, Completion]]:
        engine = self._engine
        return answer_requests(engine.app(), chunk, model=engine.info.model, check_health=engine.check_health)

    async def _peer_forward(self, request: HttpRequest) -> AsyncGenerator[list[Message]]:
        async with aclosing(forward(self._asgi, request)) as answer:
            async for messages in answer:
                yield messages

    async def _peer_complete(self, request: HttpRequest) -> AsyncGenerator[Answer]:
        """Part of a peer's request (`requests/sharding.py`)."""
        yield await self.complete(request)

    async def _peer_describe(self, _: None) -> AsyncGenerator[ReplicaInfo]:
        yield await self.describe()

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica after three consecutive failures."""
        await self._engine.check_health()

    async def __del__(self) -> None:
        if server := getattr(self, "_server", None):
            await server.stop()  # rows that are under way end
        if engine := getattr(self, "_engine", None):
            await engine.shutdown()
        await asyncio.to_thread(telemetry.flush)


def build_engine(settings: ReplicaSettings, *, assigned_cpus: float, replicas: int) -> Engine:
    """The settings' engine, not started. Raises BadSettings or UnknownOption for options unknown to vLLM."""
    if settings.simulated is not None:
        from serve_app.engine.simulated.engine import SimulatedEngine

        return SimulatedEngine(settings.engine, settings.simulated, count=accounting.count, started=accounting.started)
    from serve_app.engine.vllm import VLLMEngine

    return VLLMEngine(
        settings.engine,
        settings.health,
        settings.sharing,
        assigned_cpus=assigned_cpus,
        replicas=replicas,
        meter=accounting.install,
        ray_metrics=True,
    )
