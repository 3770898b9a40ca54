"""The replicas of a Serve application, each asked by its name (`peers`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ray import serve

from serve_app.errors import ReplicaLost
from serve_app.peers.calls import stream
from serve_app.peers.listing import Listing
from serve_app.schema import Chunk, Completion, Finished, ReplicaInfo
from serve_app.settings import REPLICAS_APP

# A replica's method, and what it yields: completions by place, and requests that wait.
ROWS, Rows = "rows", tuple[dict[int, Completion], int]


class HandlePool:
    """See `dispatcher.ReplicaPool`."""

    def __init__(self, listing: Listing, app: str = REPLICAS_APP) -> None:
        self._listing = listing
        self._app = app

    @classmethod
    def of(cls, app: str = REPLICAS_APP) -> HandlePool:
        return cls(Listing.of(app), app)

    async def replicas(self) -> list[ReplicaInfo]:
        return [peer.replica for peer in (await self._listing.refresh()).values()]

    async def failure(self) -> str:
        status = (await asyncio.to_thread(serve.status)).applications.get(self._app)
        if status is None or status.status != "DEPLOY_FAILED":
            return ""
        told = [status.message, *(deployment.message for deployment in status.deployments.values())]
        lines: list[str] = [line for text in told for line in text.splitlines() if line.strip()]
        ours = [line.partition("serve_app.errors.")[2] for line in lines if "serve_app.errors." in line]
        return (ours or lines or ["no reason was given"])[-1]

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        peer = self._listing.known.get(replica_id)
        if peer is None:
            raise ReplicaLost(f"{replica_id} does not answer any more")
        async with aclosing(stream(peer, ROWS, chunk, Rows)) as answers:
            async for completions, waiting in answers:
                yield Finished(peer.replica, completions, waiting)
