"""Routes a call to the replica that the caller names, and any other call to the less loaded of two.

The driver keeps a window of chunks open to each replica it chose, so it must say which replica a chunk is
for; Serve's own routers choose by themselves. Uses Serve's request-router extension (alpha in Ray 2.60).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ray.serve.request_router import RequestRouter

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RunningReplica

# Name of the keyword argument that holds the replica's id.
TARGET = "replica_id"


class TargetedRequestRouter(RequestRouter):
    """Power of two choices, unless the call has the keyword argument `replica_id`.

    A call for a replica that is gone goes to any other, rather than waiting for ever: its result says who ran it.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        # Without it the router asks again at once, and spins, when the chosen replicas take no more calls.
        pending_request.routing_context.should_backoff = True
        target = pending_request.kwargs.get(TARGET)
        if target is not None:
            named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == target]
            if named:
                return [named]
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
