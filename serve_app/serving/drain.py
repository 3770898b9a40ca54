"""preStop of a worker pod: Serve moves the replicas away, and their streams end first.

    kubelet ─ preStop ─> this ─> GCS: node drains, until deadline ─> Serve starts replacements elsewhere, takes the old
    replicas out of the routers, lets them finish ─> none is left here ─> SIGTERM

KubeRay's own `ray stop` cuts streams. Not yet run in a pod.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

TIMEOUT_ENV = "SERVE_APP_DRAIN_S"
DEFAULT_TIMEOUT_S = 600.0
POLL_S = 2.0
REPLICA_CLASS = "ServeReplica"


def drain(
    announce: Callable[[float], None],
    replicas_here: Callable[[], int],
    timeout_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Announce that the node leaves in `timeout_s` and wait for its replicas. Returns whether all left in time."""
    deadline = clock() + timeout_s
    announce(timeout_s)
    while left := replicas_here():
        if clock() >= deadline:
            return False
        print(f"draining: {left} replica(s) here, {deadline - clock():.0f} s left", flush=True)
        sleep(POLL_S)
    return True


def main() -> None:
    """Drain this pod's Ray node. Failures are only logged: preStop cannot keep the pod."""
    node_id = this_node()
    gone = drain(
        lambda seconds: _announce(node_id, seconds),
        lambda: _replicas_on(node_id),
        float(os.environ.get(TIMEOUT_ENV, DEFAULT_TIMEOUT_S)),
    )
    sys.exit(not gone)


def this_node() -> str:
    """Hex id of this pod's Ray node. Raises LookupError for none."""
    import ray

    address = ray.util.get_node_ip_address()
    for node_id, node in _gcs().get_all_node_info().items():
        if node.node_manager_address == address and node.state == 0:  # ALIVE
            return str(node_id.hex())
    raise LookupError(f"Ray knows no living node at {address}")


def _announce(node_id: str, seconds: float) -> None:
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    _gcs().drain_node(node_id, reason, "the pod is being deleted", int((time.time() + seconds) * 1000))


def _replicas_on(node_id: str) -> int:
    from ray.util.state import list_actors

    actors = list_actors(filters=[("node_id", "=", node_id), ("state", "=", "ALIVE")], limit=1000)
    return sum(actor.class_name.startswith(REPLICA_CLASS) for actor in actors)


def _gcs() -> Any:
    from ray import _raylet
    from ray._private import services

    raylet: Any = _raylet
    return raylet.GcsClient(address=services.canonicalize_bootstrap_address_or_die(os.environ.get("RAY_ADDRESS")))


if __name__ == "__main__":
    main()
