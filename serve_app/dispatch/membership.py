"""Tracks replicas that came and went."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.worker import Worker
from serve_app.schema import ReplicaInfo

# For a leaving replica's open calls.
LEAVE_TIMEOUT_S = 60.0


def update_workers(
    running: Mapping[str, ReplicaInfo],
    workers: dict[str, Worker],
    queues: Collection[RowQueue],
    settings: DispatchSettings,
    now: float,
) -> None:
    """Update `workers` to those that run or have calls open after leaving."""
    for replica_id, replica in running.items():
        if replica_id not in workers:
            workers[replica_id] = Worker(replica, float(settings.window_rows))
        workers[replica_id].left_at = None
    for replica_id, worker in list(workers.items()):
        if replica_id in running:
            continue
        if worker.left_at is None:
            worker.left_at = now
            for queue in queues:
                queue.forget(replica_id)
        if worker.calls:
            if now - worker.left_at > LEAVE_TIMEOUT_S:
                for call in worker.calls:
                    call.cancel()
        elif not worker.lost or now >= worker.paused_until:  # may be listed again
            del workers[replica_id]
