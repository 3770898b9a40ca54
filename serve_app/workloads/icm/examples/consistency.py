"""How examples constrain each other's labels: I(D) of the paper (section 2.2) and what Algorithm 2 may choose from.

Knows pairs and labels. Does not know where the pairs come from: they are given with the data, or computed from the
claims (`relate`), never from gold labels. (The published code derives them from gold labels for two of its datasets.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from serve_app.workloads.icm.examples.labels import NONE, Labels

Kind = Literal["contradiction", "exclusion", "implication", "equivalence"]
# kind -> the pairs of labels (first's, second's) that agree with it.
CONSISTENT: dict[Kind, tuple[tuple[int, int], ...]] = {
    "contradiction": ((1, 0), (0, 1), (0, 0)),  # not both: different answers to one question
    "exclusion": ((1, 0), (0, 1)),  # one of them: A is better than B, B is better than A
    "implication": ((1, 1), (0, 0), (0, 1)),  # the first implies the second
    "equivalence": ((1, 1), (0, 0)),  # the same: two solutions that end in the same answer
}


@dataclass(frozen=True, slots=True)
class Relation:
    """Between the examples at two indices."""

    kind: Kind
    first: int
    second: int

    def violated(self, labels: Labels) -> bool:
        """Whether both have labels, and these do not agree with it."""
        pair = labels[self.first], labels[self.second]
        return NONE not in pair and pair not in CONSISTENT[self.kind]


class Constraints:
    """All relations of a dataset of `size` examples."""

    def __init__(self, relations: Iterable[Relation], size: int) -> None:
        self.relations = tuple(relations)
        self._of: list[list[Relation]] = [[] for _ in range(size)]
        for relation in self.relations:
            self._of[relation.first].append(relation)
            self._of[relation.second].append(relation)

    def violations(self, labels: Labels) -> list[Relation]:
        """Inconsistent pairs, in the relations' order."""
        return [relation for relation in self.relations if relation.violated(labels)]

    def count(self, labels: Labels) -> int:
        """I(D), the number of inconsistent pairs."""
        return len(self.violations(labels))

    def count_after(self, count: int, old: Labels, new: Labels, changed: Sequence[int]) -> int:
        """I of `new`, from `count`, that of `old`, and the indices where they differ: only their pairs count."""
        touched = {relation for index in changed for relation in self._of[index]}
        return count + sum(relation.violated(new) - relation.violated(old) for relation in touched)


def relate(members: Sequence[tuple[int, str]], *, different: Kind = "contradiction") -> list[Relation]:
    """Relations within one group of (index, what it claims): the same claim is equivalent, another is `different`.

    What is claimed is text, such as a solution's final answer; "" is unknown and relates to nothing.
    """
    return [
        Relation("equivalence" if claim == other else different, first, second)
        for (first, claim), (second, other) in combinations([member for member in members if member[1]], 2)
    ]
