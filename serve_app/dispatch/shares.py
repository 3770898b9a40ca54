"""Chooses a replica's next rows, and replicas for suspects."""

from __future__ import annotations

import time
from collections.abc import Mapping

from serve_app.dispatch.pool import DispatchSettings, ServedModel
from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.rows import QueuedRow
from serve_app.dispatch.worker import Worker


class Shares:
    def __init__(
        self, workers: Mapping[str, Worker], queues: Mapping[bytes, RowQueue], settings: DispatchSettings
    ) -> None:
        self._workers = workers
        self._queues = queues
        self._settings = settings

    @property
    def workers(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.available]

    def reserve(self) -> None:
        """Keep at most half of the usable replicas for suspects."""
        queues = [queue for queue in self._queues.values() if queue.suspects]
        kept: set[Worker] = set()
        if queues:
            now, workers = time.monotonic(), self.workers
            able = [
                worker
                for worker in workers
                if worker.alone or (now >= worker.paused_until and any(self.may_use(queue, worker) for queue in queues))
            ]
            able.sort(key=lambda worker: (not worker.alone, not worker.reserved, worker.open_rows))
            most = max(1, min(len(workers), *map(self._limit, queues)) // 2)
            wanted = sum(worker.alone for worker in workers) + sum(len(queue.suspects) for queue in queues)
            kept.update(able[: min(most, wanted)])
        for worker in self._workers.values():
            worker.reserved = worker in kept

    def take(self, queue: RowQueue, worker: Worker) -> list[QueuedRow]:
        if worker.reserved or (worker.lost and not queue.rows):
            return queue.pull_suspect(worker.replica.replica_id)
        rows = worker.room_for(self._chunk_size(queue, worker)) if queue.rows else 0
        return queue.pull(worker.replica.replica_id, rows) if rows else []

    def may_use(self, queue: RowQueue, worker: Worker) -> bool:
        if queue.made_for is not None and queue.made_for != ServedModel.of(worker.replica.engine):
            return False
        if worker.replica.replica_id in queue.users:
            return True
        return len(queue.users) < self._limit(queue, probing=worker.lost)

    def _limit(self, queue: RowQueue, *, probing: bool = False) -> int:
        available = len(self.workers) + probing
        return max((stream.limit(available) for stream in queue.streams), default=0)

    def _chunk_size(self, queue: RowQueue, worker: Worker) -> int:
        """Rows to give now; 0 if the replica has its share."""
        sizes = self._settings
        if not all(stream.finished for stream in queue.streams):
            return sizes.chunk_rows
        now = time.monotonic()
        active = [one for one in self.workers if now >= one.paused_until and not one.reserved]
        workers = max(1, min(len(active), self._limit(queue)))
        share = -(-(queue.rows + sum(one.open_rows for one in active)) // workers) - worker.open_rows
        if share <= 0:
            return 0
        # Guided self-scheduling (Polychronopoulos and Kuck, 1987): chunks shrink so that all replicas end together.
        guided = -(-queue.rows // (2 * workers)) if workers > 1 else queue.rows
        return min(sizes.chunk_rows, max(sizes.min_chunk_rows, min(guided, share)))
