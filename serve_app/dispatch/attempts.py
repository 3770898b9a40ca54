"""Handles sent rows: answers, retries and failures."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import Any

from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.queue import RowQueue
from serve_app.dispatch.rows import QueuedRow, RowResult, Sender
from serve_app.dispatch.suspects import DEATHS, Death, culprit_message, is_culprit
from serve_app.dispatch.worker import OpenRows, Worker
from serve_app.errors import EngineFailed
from serve_app.schema import Completion, Finished

logger = logging.getLogger(__name__)

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

    def finish(self, queue: RowQueue, rows: OpenRows, finished: Finished) -> None:
        """Take what finished out of a chunk's open `rows`."""
        done: dict[Sender, list[RowResult[Any]]] = defaultdict(list)
        for place, completion in finished.completions.items():
            item = rows.pop(place)
            if completion.status == "failed":
                self.retry(queue, [item], f"{finished.replica.replica_id}: {completion.error or 'unknown error'}")
            else:
                item.answered = True
                done[item.stream].append(RowResult(item.key, completion, finished.replica, item.attempts + 1))
        for stream, results in done.items():
            queue.learn_size(len(results), stream.report(results))

    def give_back(self, worker: Worker, queue: RowQueue, items: Sequence[QueuedRow], error: BaseException) -> None:
        """A call failed, with `items` unanswered."""
        replica_id = worker.replica.replica_id
        reason = f"{replica_id}: {_first_line(error)}"
        logger.warning("a chunk failed on %s", reason)
        queue.users.discard(replica_id)  # any other replica may try
        if isinstance(error, DEATHS):
            self.mark_lost(worker, by_engine=isinstance(error, EngineFailed))
            self.requeue_lost(queue, items, reason)
        elif items:
            self.retry(queue, items, reason)

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
        open_rows = [item for rows in worker.calls.values() for item in rows.values()]
        death = Death(replica_id, by_engine, alone=worker.alone and len(open_rows) == 1)
        for item in open_rows:
            item.deaths = (*item.deaths, death)

    def requeue_lost(self, queue: RowQueue, items: Sequence[QueuedRow], reason: str) -> None:
        """Requeue a lost replica's rows. Fail the row that ended it."""
        _record_attempt(items, reason)
        if len(items) == 1 and is_culprit((item := items[0]).deaths, self._settings.max_attempts):
            self._fail(item, culprit_message(item.deaths))
            for death in item.deaths:
                death.explained = True
            for other in self._queues.values():
                other.clear_suspects()
        else:
            self.requeue(queue, items)

    def _fail(self, item: QueuedRow, *reasons: str) -> None:
        failed = Completion(status="failed", error="; ".join((*item.errors, *reasons)))
        item.answered = True
        item.stream.report([RowResult(item.key, failed, None, item.attempts)])

    def requeue(self, queue: RowQueue, items: Sequence[QueuedRow]) -> None:
        queue.requeue([item for item in items if item.stream in self._streams])


def free_prompts(items: Sequence[QueuedRow]) -> None:
    """Prompts of answered rows are freed with their chunk: until then the call holds it whole."""
    sizes: dict[Sender, int] = defaultdict(int)
    for item in items:
        if item.answered:
            item.answered = False  # it may have been in two chunks
            sizes[item.stream] += len(item.prompt)
    for stream, size in sizes.items():
        stream.prompts.change(-size)


def check(finished: Finished | None, rows: OpenRows) -> None:
    """Raises ValueError for answers to what is not open, and for open rows at the end."""
    if finished is None and rows:
        raise ValueError(f"{len(rows)} prompts have no answer")
    if finished is not None and not finished.completions.keys() <= rows.keys():
        raise ValueError("answers to prompts that are not open")


def _record_attempt(items: Sequence[QueuedRow], reason: str) -> None:
    for item in items:
        item.attempts += 1
        item.errors = (*item.errors, reason)


def _first_line(error: BaseException) -> str:
    """A remote error's cause, without Ray's traceback."""
    cause = getattr(error, "cause", None)
    text = str(cause if isinstance(cause, BaseException) else error).strip()
    return f"{type(error).__name__}: {text.splitlines()[-1] if text else ''}"[:300]
