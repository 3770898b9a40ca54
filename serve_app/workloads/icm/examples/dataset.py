"""The search's input: examples, constraints and label words. Gold labels are in a separate object and file
(`evaluation.Gold`), which the search never imports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from serve_app.errors import BadSettings
from serve_app.workloads.icm.examples.consistency import Relation
from serve_app.workloads.icm.schedule import stream


@dataclass(frozen=True, slots=True)
class Example:
    """`text` is all before the label, without a final space. A `group` is about one thing (a question, a review's
    subject); "" is its own group."""

    id: str
    text: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class LabelWords:
    """The two labels as the model writes them, label 0 first, with the preceding space. Each is one token; chat answers
    begin without a space.
    """

    negative: str
    positive: str

    def __getitem__(self, label: int) -> str:
        return (self.negative, self.positive)[label]

    @property
    def in_text(self) -> tuple[str, str]:
        """After a demonstration."""
        return self.negative, self.positive

    @property
    def in_chat(self) -> tuple[str, str]:
        """At an answer's start."""
        return self.negative.strip(), self.positive.strip()


@dataclass(frozen=True, slots=True)
class Dataset:
    """`relations` are between indices of `examples`; `instruction` begins every prompt."""

    name: str
    examples: tuple[Example, ...]
    relations: tuple[Relation, ...]
    words: LabelWords
    instruction: str = ""

    def __len__(self) -> int:
        return len(self.examples)

    def sample(self, size: int, seed: int) -> Dataset:
        """At most `size` examples: whole groups in random order while they fit. Raises BadSettings if none fits."""
        order = sorted(range(len(self)), key=lambda index: self.examples[index].group or f"\0{index}")
        groups = [list(members) for _, members in groupby(order, lambda i: self.examples[i].group or f"\0{i}")]
        chosen: list[int] = []
        for number in stream(seed, "sample").permutation(len(groups)):
            if len(chosen) + len(groups[number]) <= size:
                chosen += groups[number]
        if not chosen:
            raise BadSettings(f"--batch-size {size} is below the smallest consistency group of {self.name}: raise it")
        return self._only(chosen)

    def _only(self, indices: list[int]) -> Dataset:
        new = {old: index for index, old in enumerate(indices)}
        relations = tuple(
            Relation(relation.kind, new[relation.first], new[relation.second])
            for relation in self.relations
            if relation.first in new and relation.second in new
        )
        return replace(self, examples=tuple(self.examples[index] for index in indices), relations=relations)
