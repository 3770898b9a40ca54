"""The running replicas of a deployment, as Serve knows them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

import ray
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import ServeAppError
from serve_app.peers.calls import call
from serve_app.peers.peer import Peer
from serve_app.schema import ReplicaInfo
from serve_app.settings import REPLICA_DEPLOYMENT

T = TypeVar("T")
# A replica's method.
DESCRIBE = "describe"
# A slower replica counts as unable to work.
HANGS_S = 5.0
# Random tries when none is known and one hangs.
GUESSES = 8


class Listing:
    """`handle` is of the deployment `Replica` in application `app`."""

    def __init__(self, handle: DeploymentHandle, app: str) -> None:
        self._handle = handle
        self._app = app
        self.known: dict[str, Peer] = {}
        self._found: dict[str, Peer] = {}

    @classmethod
    def of(cls, app: str) -> Listing:
        """Raises KeyError without the application."""
        return cls(serve.get_deployment_handle(REPLICA_DEPLOYMENT, app), app)

    async def refresh(self, timeout_s: float = HANGS_S) -> dict[str, Peer]:
        """The replicas that answer, by id. Raises what Serve does if it cannot be asked."""
        node_id = ray.get_runtime_context().get_node_id()
        try:
            answers: list[Any] = await self._handle.broadcast("peer", node_id).results_async(
                timeout_s=timeout_s, return_exceptions=True
            )
        except DeploymentUnavailableError:
            answers = []
        except TimeoutError:  # one hanging replica blocks a broadcast
            answers = await self._ask_each(node_id)
        found = {peer.replica.replica_id: peer for peer in answers if isinstance(peer, Peer)}
        # With those of before: a call may be about to begin, and when all hang they are all that is known.
        self.known = {**(self._found or self.known), **found}
        self._found = found
        return found

    async def _ask_each(self, node_id: str) -> list[Any]:
        asked = [self._still(peer) for peer in self.known.values()]
        # Not when none runs: the call would start one.
        if not asked and await self._any_runs():
            asked = [self._guess(node_id) for _ in range(GUESSES)]
        return await asyncio.gather(*asked)

    async def _still(self, peer: Peer) -> Peer | None:
        try:
            await call(peer, DESCRIBE, None, ReplicaInfo, silent_s=HANGS_S)
        except ServeAppError:
            return None
        return peer

    async def _guess(self, node_id: str) -> Peer | None:
        response = self._handle.peer.remote(node_id)
        try:
            async with asyncio.timeout(HANGS_S):
                peer: Peer = await response
                return peer
        except Exception:  # gone or hanging
            response.cancel()
            return None

    async def _any_runs(self) -> bool:
        app = (await asyncio.to_thread(serve.status)).applications.get(self._app)
        deployment = app and app.deployments.get(REPLICA_DEPLOYMENT)
        return bool(deployment and deployment.replica_states.get("RUNNING"))


async def outside_request(work: Coroutine[Any, Any, T]) -> T:
    """Await in an own context: Serve's router tells calls apart by the surrounding HTTP request's id, and never routed
    calls that shared one.
    """
    return await asyncio.create_task(work, context=contextvars.Context())
