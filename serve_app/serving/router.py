"""Which replica takes a call: the one it names, the one that knows its session, or the less loaded of two.

Knows a call's keyword arguments and its session; does not know what is asked. Uses Serve's request-router extension
(alpha in Ray 2.60), which pickles this module by value into the proxies: it imports nothing of ours at run time.

- The driver keeps a window of chunks open to each replica it chose, so it says which one a chunk is for.
- A session is whatever the header `x-session-id` says (RAY_SERVE_SESSION_ID_HEADER_KEY), or `session_id` of a handle's
  options. Its turns go where their prefix is cached, by rendezvous hashing over the replicas' ids: every proxy picks
  the same replica without asking anybody, and a replica that comes or goes moves only the sessions that are its own.
- The load check is of the preferred replica only (vllm-router#238): an imbalance among others is no reason to leave it.

Prompts that share a prefix without being turns of one talk get the same by sending a name of that prefix in the same
header. The router cannot find it out: of an HTTP request Serve's proxy gives it the pickled ASGI scope, and the body
is fetched by the replica that was chosen (`ASGIProxyRequest.serialized_replica_arg`, `receive_asgi_messages`). Reading
the body in front costs a second hop, as ray.serve.llm has. Where there is one anyway, for several models on one URL,
OpenAI's own `prompt_cache_key` counts as session (`models/directory.py`).

Behind HAProxy none of this runs for HTTP requests: it chooses by itself, and Serve refuses a router on an ingress.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from ray.serve.request_router import RequestRouter

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RunningReplica

# Name of the keyword argument that holds the replica's id.
TARGET = "replica_id"


class TargetedRequestRouter(RequestRouter):
    """Power of two choices, unless the call names a replica or belongs to a session.

    A call for a replica that is gone goes to any other, rather than waiting for ever: its result says who ran it.
    """

    _affinity = False

    def initialize_state(
        self, *, session_affinity: bool = False, session_slack_requests: int = 0, session_load_factor: float = 1.0
    ) -> None:
        """Serve calls it with `request_router_kwargs`: the fields of `settings.RoutingSettings`."""
        self._affinity = session_affinity
        self._slack_requests = session_slack_requests
        self._load_factor = session_load_factor

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas: of the first rank with one that takes more calls, Serve picks the least loaded."""
        if pending_request is None:
            return [any_two(candidate_replicas)]
        # Without it the router asks again at once, and spins, when the chosen replicas take no more calls.
        pending_request.routing_context.should_backoff = True
        target = pending_request.kwargs.get(TARGET)
        if target is not None:
            named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == target]
            return [named or any_two(candidate_replicas)]
        session = pending_request.metadata.session_id
        if self._affinity and session and len(candidate_replicas) > 1:
            return self._near(session, candidate_replicas)
        return [any_two(candidate_replicas)]

    def _near(self, session: str, replicas: Sequence[RunningReplica]) -> list[list[RunningReplica]]:
        by_id = {replica.replica_id.unique_id: replica for replica in replicas}
        chosen = preferred(session, by_id)
        others = [replica for name, replica in by_id.items() if name != chosen]
        # Serve's own counts, from each answer of a replica; it asks again for those that are old or at the limit.
        queued = {name: self.replica_queue_len_cache.get(replica.replica_id) for name, replica in by_id.items()}
        if overloaded(chosen, queued, slack_requests=self._slack_requests, load_factor=self._load_factor):
            return [any_two(others)]
        return [[by_id[chosen]], any_two(others)]  # the others, where the first takes no more calls


def preferred(session: str, replica_ids: Iterable[str]) -> str:
    """The session's replica: the one with the highest hash of both (Thaler and Ravishankar 1998).

    Raises ValueError without replicas.
    """
    key = session.encode("utf-8", "surrogatepass")
    return max(replica_ids, key=lambda name: blake2b(b"%b\0%b" % (name.encode(), key), digest_size=8).digest())


def overloaded(chosen: str, queued: Mapping[str, int | None], *, slack_requests: int, load_factor: float) -> bool:
    """Whether so many calls are open at `chosen` that its cached prefix is not worth the wait.

    `queued` are calls that run or wait, by replica; None is unknown and not counted. They are compared with the mean
    of the others and not with the idlest, or one replica that just came would draw every session away from its own.
    """
    own = queued[chosen]
    others = [calls for name, calls in queued.items() if name != chosen and calls is not None]
    if own is None or not others:
        return False
    return own > slack_requests + load_factor * sum(others) / len(others)


def any_two(replicas: Sequence[RunningReplica]) -> list[RunningReplica]:
    """Two at random, or those there are."""
    return random.sample(replicas, min(2, len(replicas)))
