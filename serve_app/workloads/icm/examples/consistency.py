"""Constraints between labels: I(D) of the paper (section 2.2) and the choices of Algorithm 2.

Pairs are given with the data or computed from claims (`relate`), never from gold labels, from which the published code
derives them for two datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from serve_app.workloads.icm.examples.labels import NONE, Labels

Kind = Literal["contradiction", "exclusion", "implication", "equivalence"]
# kind -> consistent label pairs (first's, second's).
CONSISTENT: dict[Kind, tuple[tuple[int, int], ...]] = {
    "contradiction": ((1, 0), (0, 1), (0, 0)),  # not both: different answers
    "exclusion": ((1, 0), (0, 1)),  # exactly one: A better than B, or the reverse
    "implication": ((1, 1), (0, 0), (0, 1)),  # the first implies the second
    "equivalence": ((1, 1), (0, 0)),  # the same: two solutions with one answer
}


@dataclass(frozen=True, slots=True)
class Relation:
    """Between examples at two indices."""

    kind: Kind
    first: int
    second: int

    def violated(self, labels: Labels) -> bool:
        """Whether both labels exist and disagree with it."""
        pair = labels[self.first], labels[self.second]
        return NONE not in pair and pair not in CONSISTENT[self.kind]


class Constraints:
    """All relations among `size` examples."""

    def __init__(self, relations: Iterable[Relation], size: int) -> None:
        self.relations = tuple(relations)
        self._of: list[list[Relation]] = [[] for _ in range(size)]
        for relation in self.relations:
            self._of[relation.first].append(relation)
            self._of[relation.second].append(relation)

    def violations(self, labels: Labels) -> list[Relation]:
        """Inconsistent pairs, in relation order."""
        return [relation for relation in self.relations if relation.violated(labels)]

    def count(self, labels: Labels) -> int:
        """I(D), the number of inconsistent pairs."""
        return len(self.violations(labels))

    def count_after(self, count: int, old: Labels, new: Labels, changed: Sequence[int]) -> int:
        """I of `new` from `count`, that of `old`, and the differing indices, whose pairs alone count."""
        touched = {relation for index in changed for relation in self._of[index]}
        return count + sum(relation.violated(new) - relation.violated(old) for relation in touched)


def relate(members: Sequence[tuple[int, str]], *, different: Kind = "contradiction") -> list[Relation]:
    """Relations in one group of (index, claim): the same claim is equivalent, another is `different`. A claim is text,
    such as a final answer; "" is unknown and unrelated.
    """
    return [
        Relation("equivalence" if claim == other else different, first, second)
        for (first, claim), (second, other) in combinations([member for member in members if member[1]], 2)
    ]
