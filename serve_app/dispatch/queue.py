"""Queues rows for replicas, in groups that share a prefix.

Prompt bytes sort shared prefixes side by side. A group stays with the replica whose cache has its prefix. A replica
without a group begins the next or steals from the largest. Suspects run alone.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from itertools import count
from operator import attrgetter

from serve_app.dispatch.pool import ServedModel
from serve_app.dispatch.rows import QueuedRow, Sender
from serve_app.schema import Chunk

# A chunk of long prompts ends early: it is one message.
CHUNK_BYTES = 4 << 20
# Answers that tell what the next ones will need.
LATEST = 256


class RowQueue:
    """Rows of one kind (same labels, sampling and priority).

    `users` are replicas that took some, `made_for` the engine their prompts need, if known. `rows` excludes `suspects`;
    `open_rows` are on replicas. `answer_bytes` is the mean of the latest answers.
    """

    def __init__(self, template: Chunk, made_for: ServedModel | None = None) -> None:
        self.template = template
        self.made_for = made_for
        self.rows = 0
        self.open_rows = 0
        self.answer_bytes = 0.0
        self._answers = 0
        self.suspects: deque[QueuedRow] = deque()
        self.streams: set[Sender] = set()
        self.users: set[str] = set()
        self._returned: deque[list[QueuedRow]] = deque()
        self._free: list[tuple[int, int, deque[QueuedRow]]] = []  # heap: longest answers first, then by arrival
        self._begun: dict[str, deque[QueuedRow]] = {}
        self._arrival = count()

    def add(self, items: Sequence[QueuedRow]) -> None:
        self.rows += len(items)
        for group in prefix_groups(items):
            self._push(deque(group))

    def pull(self, replica_id: str, rows: int) -> list[QueuedRow]:
        """Returned rows first, then those of the replica's own group, then of another's."""
        self.users.add(replica_id)
        if self._returned:
            items = self._returned.popleft()
        else:
            items, size = [], 0
            while len(items) < rows and size < CHUNK_BYTES and (group := self._group_for(replica_id, steal=not items)):
                while group and len(items) < rows and size < CHUNK_BYTES:
                    items.append(item := group.popleft())
                    size += len(item.prompt)
        self.rows -= len(items)
        return items

    def learn_size(self, rows: int, size: int) -> None:
        """So many answers had together `size` bytes."""
        self._answers = min(self._answers + rows, LATEST)
        self.answer_bytes += (size / rows - self.answer_bytes) * min(1, rows / self._answers)

    def pull_suspect(self, replica_id: str) -> list[QueuedRow]:
        """The next suspect, for an otherwise idle replica."""
        if not self.suspects:
            return []
        self.users.add(replica_id)
        return [self.suspects.popleft()]

    def requeue(self, items: Sequence[QueuedRow]) -> None:
        """Put back unanswered rows. They go first and together, except suspects."""
        self.suspects += [item for item in items if item.suspected]
        if others := [item for item in items if not item.suspected]:
            self.rows += len(others)
            self._returned.append(others)

    def clear_suspects(self) -> None:
        """Move cleared suspects back into the groups."""
        cleared = [item for item in self.suspects if not item.suspected]
        self.suspects = deque(item for item in self.suspects if item.suspected)
        self.add(cleared)

    def forget(self, replica_id: str) -> None:
        """Free the group of a replica that left."""
        self.users.discard(replica_id)
        group = self._begun.pop(replica_id, None)
        if group and all(group is not other for other in self._begun.values()):
            self._push(group)

    def discard(self, stream: Sender) -> None:
        self.suspects = deque(item for item in self.suspects if item.stream is not stream)
        for group in (*self._returned, *(group for _, _, group in self._free), *_distinct(self._begun)):
            kept = [item for item in group if item.stream is not stream]
            self.rows -= len(group) - len(kept)
            group.clear()
            group.extend(kept)
        self._returned = deque(items for items in self._returned if items)
        self._free = [entry for entry in self._free if entry[2]]
        heapq.heapify(self._free)

    def _group_for(self, replica_id: str, *, steal: bool) -> deque[QueuedRow] | None:
        if group := self._begun.get(replica_id):
            return group
        if self._free:
            _, _, group = heapq.heappop(self._free)
        elif steal:
            group = max(self._begun.values(), key=len, default=None)
        if group:
            self._begun[replica_id] = group
        return group or None

    def _push(self, group: deque[QueuedRow]) -> None:
        heapq.heappush(self._free, (-group[0].expected_tokens, next(self._arrival), group))


def prefix_groups(items: Sequence[QueuedRow]) -> list[list[QueuedRow]]:
    """Cut rows into groups, sorted by longest expected answer, then prompt. Each row shares at least half of its prompt
    with the next; less is not worth waiting for a replica."""
    ordered = sorted(items, key=attrgetter("prompt"))
    groups: list[list[QueuedRow]] = []
    before = None
    for item in ordered:
        prompt = item.prompt
        half = (len(prompt) if before is None else min(len(prompt), len(before))) // 2
        if before is not None and prompt[:half] == before[:half]:
            groups[-1].append(item)
        else:
            groups.append([item])
        before = prompt
    if any(item.expected_tokens for item in items):
        for group in groups:
            group.sort(key=attrgetter("expected_tokens"), reverse=True)
    return groups


def _distinct(groups: dict[str, deque[QueuedRow]]) -> list[deque[QueuedRow]]:
    return list({id(group): group for group in groups.values()}.values())
