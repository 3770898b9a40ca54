from collections import Counter
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serve_app.dispatch.queue import RowQueue, prefix_groups
from serve_app.dispatch.rows import QueuedRow
from serve_app.dispatch.suspects import Death
from serve_app.schema import Chunk, pack_tokens

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(pack_tokens)
REPLICAS = st.sampled_from("abc")
# The queue only compares streams.
NOBODY: Any = None


@given(st.lists(TOKENS, max_size=40))
def test_groups_hold_every_row_once_and_each_row_shares_half_of_its_prompt_with_the_next(prompts: list[bytes]) -> None:
    groups = prefix_groups([QueuedRow(NOBODY, i, prompt) for i, prompt in enumerate(prompts)])
    assert Counter(item.key for group in groups for item in group) == Counter(range(len(prompts)))
    for group in groups:
        for one, other in pairwise(group):
            half = min(len(one.prompt), len(other.prompt)) // 2
            assert one.prompt[:half] == other.prompt[:half]
    for group, after in pairwise(groups):
        half = min(len(group[-1].prompt), len(after[0].prompt)) // 2
        assert group[-1].prompt[:half] != after[0].prompt[:half]


@given(st.lists(st.tuples(TOKENS, st.integers(0, 50)), min_size=1, max_size=40))
def test_within_a_group_the_longest_expected_answer_comes_first(rows: list[tuple[bytes, int]]) -> None:
    for group in prefix_groups([QueuedRow(NOBODY, i, prompt, expected) for i, (prompt, expected) in enumerate(rows)]):
        lengths = [item.expected_tokens for item in group]
        assert lengths == sorted(lengths, reverse=True)


def pulled(queue: RowQueue, replica: str, rows: int) -> list[Any]:
    return [item.key for item in queue.pull(replica, rows)]


def documents(*sizes: int) -> list[QueuedRow]:
    """Rows on as many documents, each with a prefix of its own; keys are (document, row)."""
    return [
        QueuedRow(NOBODY, (document, row), pack_tokens([document] * 9 + [row]))
        for document, size in enumerate(sizes)
        for row in range(size)
    ]


def test_a_replica_ends_its_document_before_it_begins_another() -> None:
    queue = RowQueue(Chunk(0, ()))
    queue.add(documents(6, 6))
    seen: dict[str, list[Any]] = {"a": [], "b": []}
    for _ in range(3):
        for name in "ab":
            seen[name] += pulled(queue, name, 2)
    assert [{document for document, _ in rows} for rows in seen.values()] == [{0}, {1}]


def test_an_idle_replica_takes_from_the_largest_document_that_is_left() -> None:
    queue = RowQueue(Chunk(0, ()))
    queue.add(documents(4, 10))
    assert pulled(queue, "a", 1) == [(0, 0)]
    assert pulled(queue, "b", 1) == [(1, 0)]
    assert [document for document, _ in pulled(queue, "c", 3)] == [1, 1, 1]


def test_a_chunk_is_filled_from_several_small_documents_but_not_with_another_replicas_rows() -> None:
    queue = RowQueue(Chunk(0, ()))
    queue.add(documents(2, 2, 8))
    assert len(pulled(queue, "a", 4)) == 4
    assert len(pulled(queue, "b", 2)) == 2
    assert pulled(queue, "a", 4) == [(2, 2), (2, 3), (2, 4), (2, 5)]  # nothing else is left: now it steals


class QueueMachine(RuleBasedStateMachine):
    """Whatever is added, pulled, given back, suspected, cleared, forgotten and discarded: no row is lost, none is
    there twice."""

    @initialize()
    def begin(self) -> None:
        self.queue = RowQueue(Chunk(0, ()))
        self.waiting: Counter[Any] = Counter()
        self.out: list[list[QueuedRow]] = []
        self.deaths: list[Death] = []
        self.next_key = 0

    @rule(stream=st.sampled_from("xy"), prompts=st.lists(TOKENS, max_size=8))
    def add(self, stream: Any, prompts: list[bytes]) -> None:
        items = [QueuedRow(stream, (stream, self.next_key + i), prompt) for i, prompt in enumerate(prompts)]
        self.next_key += len(items)
        self.waiting.update(item.key for item in items)
        self.queue.add(items)

    @rule(replica=REPLICAS, rows=st.integers(1, 6))
    def pull(self, replica: str, rows: int) -> None:
        had = self.queue.rows
        items = self.queue.pull(replica, rows)
        assert bool(items) == bool(had)
        self.waiting.subtract(item.key for item in items)
        assert min(self.waiting.values(), default=0) >= 0
        if items:
            self.out.append(items)

    @rule()
    def requeue(self) -> None:
        if self.out:
            items = self.out.pop()
            self.waiting.update(item.key for item in items)
            self.queue.requeue(items)

    @rule(replica=REPLICAS)
    def lose(self, replica: str) -> None:
        if self.out:
            self.deaths.append(Death(replica, by_engine=True, alone=False))
            for item in self.out[-1]:
                item.deaths = (*item.deaths, self.deaths[-1])
            self.requeue()

    @rule(replica=REPLICAS)
    def pull_suspect(self, replica: str) -> None:
        had = len(self.queue.suspects)
        items = self.queue.pull_suspect(replica)
        assert len(items) == min(had, 1)
        assert all(item.suspected for item in items)
        self.waiting.subtract(item.key for item in items)
        if items:
            self.out.append(items)

    @rule(data=st.data())
    def explain(self, data: st.DataObject) -> None:
        if self.deaths:
            data.draw(st.sampled_from(self.deaths)).explained = True
            self.queue.clear_suspects()
            assert all(item.suspected for item in self.queue.suspects)

    @rule(replica=REPLICAS)
    def forget(self, replica: str) -> None:
        self.queue.forget(replica)

    @rule(stream=st.sampled_from("xy"))
    def discard(self, stream: Any) -> None:
        self.queue.discard(stream)
        self.out = [[item for item in items if item.stream != stream] for items in self.out]
        self.out = [items for items in self.out if items]
        self.waiting = Counter({key: n for key, n in self.waiting.items() if key[0] != stream})

    @invariant()
    def the_count_is_right(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.rows + len(self.queue.suspects) == sum(self.waiting.values())

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            left: Counter[Any] = Counter()
            while items := self.queue.pull("a", 5) or self.queue.pull_suspect("a"):
                left.update(item.key for item in items)
            assert left == +self.waiting


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
