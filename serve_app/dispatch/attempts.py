"""Handles sent rows: answers, retries and failures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import Any

from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.rows import QueuedRow, RowResult, Sender
from serve_app.dispatch.suspects import Death, culprit_message, is_culprit
from serve_app.dispatch.worker import Worker
from serve_app.schema import ChunkResult, Completion

# 64 rows are single after three splits.
ATTEMPTS_BEFORE_SPLIT = 2
SPLIT_FACTOR = 4


class Attempts:
    def __init__(
        self, queues: Mapping[bytes, RowQueue], streams: Container[Sender], settings: DispatchSettings
    ) -> None:
        self._queues = queues
        self._streams = streams
        self._settings = settings

    def finish(self, queue: RowQueue, items: Sequence[QueuedRow], result: ChunkResult) -> None:
        done: dict[Sender, list[RowResult[Any]]] = defaultdict(list)
        for item, completion in zip(items, result.completions, strict=True):
            if completion.status == "failed":
                self.retry(queue, [item], f"{result.replica.replica_id}: {completion.error or 'unknown error'}")
            else:
                done[item.stream].append(RowResult(item.key, completion, result.replica, item.attempts + 1))
        for stream, results in done.items():
            stream.report(results)

    def retry(self, queue: RowQueue, items: Sequence[QueuedRow], reason: str) -> None:
        """Queue the rows again in smaller chunks, single rows while attempts are left."""
        _record_attempt(items, reason)
        if len(items) == 1:
            (item,) = items
            item.failures += 1
            if item.failures < self._settings.max_attempts:
                self.requeue(queue, items)
            else:
                self._fail(item)
            return
        for item in items:
            item.shared_failures += 1
        whole = max(item.shared_failures for item in items) < ATTEMPTS_BEFORE_SPLIT
        step = len(items) if whole else -(-len(items) // SPLIT_FACTOR)
        for start in range(0, len(items), step):
            self.requeue(queue, items[start : start + step])

    def mark_lost(self, worker: Worker, *, by_engine: bool) -> None:
        """Mark the worker as lost; its open calls raise one by one."""
        replica_id = worker.replica.replica_id
        if worker.lost:
            return
        worker.lost = True
        for queue in self._queues.values():
            queue.forget(replica_id)
        if worker.left_at is not None and not by_engine:
            return
        open_rows = [item for items in worker.calls.values() for item in items]
        death = Death(replica_id, by_engine, alone=worker.alone and len(open_rows) == 1)
        for item in open_rows:
            item.deaths = (*item.deaths, death)

    def requeue_lost(self, queue: RowQueue, items: Sequence[QueuedRow], reason: str) -> None:
        """Requeue a lost replica's rows. Fail the row that ended it."""
        _record_attempt(items, reason)
        item = items[0]
        if len(items) == 1 and item.deaths and is_culprit(item.deaths, self._settings.max_attempts):
            self._fail(item, culprit_message(item.deaths))
            for death in item.deaths:
                death.explained = True
            for other in self._queues.values():
                other.clear_suspects()
        else:
            self.requeue(queue, items)

    def _fail(self, item: QueuedRow, *reasons: str) -> None:
        failed = Completion(status="failed", error="; ".join((*item.errors, *reasons)))
        item.stream.report([RowResult(item.key, failed, None, item.attempts)])

    def requeue(self, queue: RowQueue, items: Sequence[QueuedRow]) -> None:
        queue.requeue([item for item in items if item.stream in self._streams])


def _record_attempt(items: Sequence[QueuedRow], reason: str) -> None:
    for item in items:
        item.attempts += 1
        item.errors = (*item.errors, reason)
