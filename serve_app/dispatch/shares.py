"""Chooses a replica's next rows, and replicas for suspects."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from serve_app.dispatch.memory import Memory
from serve_app.dispatch.pool import DispatchSettings, ServedModel
from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.rows import QueuedRow
from serve_app.dispatch.worker import Worker


class Shares:
    def __init__(
        self,
        workers: Mapping[str, Worker],
        queues: Mapping[bytes, RowQueue],
        settings: DispatchSettings,
        memory: Memory,
        pump: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._queues = queues
        self._settings = settings
        self._memory = memory
        self._pump = pump

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
        rows = self._with_room_for_answers(queue, rows)
        return queue.pull(worker.replica.replica_id, rows) if rows else []

    def _with_room_for_answers(self, queue: RowQueue, rows: int) -> int:
        """How many of `rows` to give now, if their answers become as long as the latest: at least half, or none. One
        where no other is held."""
        size = queue.answer_bytes
        if not rows or not size:
            return rows
        expected = sum([other.open_rows * other.answer_bytes for other in self._queues.values()])
        own = queue.open_rows * size + max((stream.answers.held for stream in queue.streams), default=0)
        room = int((self._memory.limit - self._memory.held - expected - own) / (2 * size))  # as Holding.may_take
        if room < rows / 2 and own:
            self._memory.when_freed(self._pump)
            return 0
        return max(1, min(rows, room))

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
