"""Leave-one-out prompts, ordered so that they share most tokens.

The paper's P(D) needs log p(y_i | x_i, D∖i) for every i, a set without an order. In example order, prompt i shares with
later ones only what precedes demonstration i: half at best. Here examples are leaves of a binary tree, and prompt i
holds first the half without i, then from i's half the quarter without i, and so on. All prompts of a subtree begin
alike. In units of one demonstration (a query adds one), N = 2^m prompts of N units each have

    distinct (cold)                 N·(m + 1)                 cached share 1 − (m + 1)/N: 96.5 % for N = 256
    changed by one new label        Σ_l 2^l·(l + 1 + 1/2)     cached share 97.1 % for N = 256

instead of about 50 and 66 % in a fixed order. `sharing.py` computes both for real prompts, in tokens and blocks. Leaf
places are drawn by seed, so that a query's neighbours do not depend on data order, and stay fixed, so that U depends on
the labels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.labels import Labels, labelled, without
from serve_app.workloads.icm.schedule import stream


class Question(NamedTuple):
    """The label of `example` (an index) given other labels; `given` excludes it."""

    given: Labels
    example: int


def question(labels: Labels, index: int) -> Question:
    """The label given all others: log p(· | x_i, D∖i)."""
    return Question(without(labels, index), index)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a call. `text` ends before the label; with `chat` it is a user message. `example` is the id asked
    about."""

    example: str
    text: str
    words: tuple[str, str]
    chat: bool = False


class Prompts:
    """Makes a dataset's prompts. `seed` places examples in the tree."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset = dataset
        self._place: list[int] = stream(seed, "places").permutation(len(dataset)).tolist()
        self._begin = f"{dataset.instruction}\n\n" if dataset.instruction else ""
        # (label 0, label 1) of each, rendered once.
        self._demonstrations = [
            tuple(f"{example.text}{word}\n\n" for word in dataset.words.in_text) for example in dataset.examples
        ]

    def order(self, given: Labels, index: int) -> list[int]:
        """Labelled examples in prompt order, far in the tree first. The highest differing bit of two places gives their
        distance."""
        own = self._place[index]
        return sorted(labelled(given), key=lambda i: (-(self._place[i] ^ own).bit_length(), self._place[i]))

    def render(self, asked: Question) -> Prompt:
        """Instruction, labelled demonstrations, and the example up to its label."""
        shown = [self._demonstrations[i][asked.given[i]] for i in self.order(asked.given, asked.example)]
        example = self._dataset.examples[asked.example]
        return Prompt(example.id, "".join([self._begin, *shown, example.text]), self._dataset.words.in_text)

    def chat(self, index: int) -> Prompt:
        """A chat message of the example without demonstrations."""
        example, words = self._dataset.examples[index], self._dataset.words.in_chat
        ask = f"Answer with one word, {words[1]} or {words[0]}."
        return Prompt(example.id, f"{self._begin}{example.text}\n\n{ask}", words, chat=True)

    def longest(self, indices: Sequence[int]) -> int:
        """The index of the longest text."""
        return max(indices, key=lambda index: len(self._dataset.examples[index].text))
