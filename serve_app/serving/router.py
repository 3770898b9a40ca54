"""Chooses a call's replica behind Serve's own proxy: its session's, or the less loaded of two.

Knows a call's session. Serve's request-router extension (alpha in Ray 2.60) pickles this module by value into the
proxies, so it imports nothing of ours at run time.

- A session is the header `x-session-id` (RAY_SERVE_SESSION_ID_HEADER_KEY), or `session_id` of a handle's options.
  Rendezvous hashing over replica ids sends its turns to their cached prefix: all proxies agree without asking, and a
  change of replicas moves only its own sessions.
- Only the preferred replica's load is checked (vllm-router#238); other imbalances do not matter.

Prompts with a shared prefix can send a common name in that header. The router cannot see the prefix: Serve's proxy
gives it the pickled ASGI scope, and the chosen replica fetches the body (`ASGIProxyRequest.serialized_replica_arg`,
`receive_asgi_messages`). Reading bodies first costs a second hop, as in ray.serve.llm. Several models on one URL have
that hop, and OpenAI's `prompt_cache_key` counts as session (`models/directory.py`).

HAProxy does the same by `haproxy/sessions.lua`; Serve then refuses a router on an ingress. Peers name a replica without
any router (`serve_app.peers`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from ray.serve.request_router import RequestRouter

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RunningReplica


class SessionRouter(RequestRouter):
    """Power of two choices, unless a call has a session."""

    _affinity = False

    def initialize_state(
        self, *, session_affinity: bool = False, session_slack_requests: int = 0, session_load_factor: float = 1.0
    ) -> None:
        """Called by Serve with `request_router_kwargs`: fields of `settings.RoutingSettings`."""
        self._affinity = session_affinity
        self._slack_requests = session_slack_requests
        self._load_factor = session_load_factor

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranked replicas: Serve picks the least loaded of the first rank with room."""
        if pending_request is None:
            return [any_two(candidate_replicas)]
        # Otherwise the router spins while the chosen are full.
        pending_request.routing_context.should_backoff = True
        session = pending_request.metadata.session_id
        if self._affinity and session and len(candidate_replicas) > 1:
            return self._near(session, candidate_replicas)
        return [any_two(candidate_replicas)]

    def _near(self, session: str, replicas: Sequence[RunningReplica]) -> list[list[RunningReplica]]:
        by_id = {replica.replica_id.unique_id: replica for replica in replicas}
        chosen = preferred(session, by_id)
        others = [replica for name, replica in by_id.items() if name != chosen]
        # Serve asks again for old counts and full replicas.
        queued = {name: self.replica_queue_len_cache.get(replica.replica_id) for name, replica in by_id.items()}
        if overloaded(chosen, queued, slack_requests=self._slack_requests, load_factor=self._load_factor):
            return [any_two(others)]
        return [[by_id[chosen]], any_two(others)]  # used if the first is full


def preferred(session: str, replica_ids: Iterable[str]) -> str:
    """The session's replica, by highest hash of both (Thaler and Ravishankar 1998). Raises ValueError without any."""
    key = session.encode("utf-8", "surrogatepass")
    return max(replica_ids, key=lambda name: blake2b(b"%b\0%b" % (name.encode(), key), digest_size=8).digest())


def overloaded(chosen: str, queued: Mapping[str, int | None], *, slack_requests: int, load_factor: float) -> bool:
    """Whether `chosen` has too many open calls for its cached prefix to pay.

    `queued` are running and waiting calls by replica; None is unknown and not counted. Compared with the others' mean,
    since by the minimum a new replica would draw all sessions.
    """
    own = queued[chosen]
    others = [calls for name, calls in queued.items() if name != chosen and calls is not None]
    if own is None or not others:
        return False
    return own > slack_requests + load_factor * sum(others) / len(others)


def any_two(replicas: Sequence[RunningReplica]) -> list[RunningReplica]:
    return random.sample(replicas, min(2, len(replicas)))
