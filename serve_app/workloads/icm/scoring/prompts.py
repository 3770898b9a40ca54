"""Leave-one-out prompts, their demonstrations ordered so that prompts share most of their tokens.

The paper's P(D) needs log p(y_i | x_i, D∖i) for every i; it conditions on a set and leaves the order open. In the
examples' own order, prompt i shares with the next ones only what stands before demonstration i: half at best. Here the
examples are the leaves of a binary tree, and prompt i holds first the half that i is not in, then of i's own half the
quarter that i is not in, and so on: what is far first, what is near last. All prompts of a subtree begin with the same
text. In units of one demonstration (a query is one more), N = 2^m prompts of N units each have

    distinct (cold)                 N·(m + 1)                 cached share 1 − (m + 1)/N: 96.5 % for N = 256
    changed by one new label        Σ_l 2^l·(l + 1 + 1/2)     cached share 97.1 % for N = 256

instead of about 50 and 66 % in a fixed order. `sharing.py` computes both for real prompts, in tokens and blocks. The
places of the leaves are drawn by seed, so that what stands next to a query does not depend on the data's order, and
stay as they are, so that U is a function of the labels alone and not of how the search came to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.labels import Labels, labelled, without
from serve_app.workloads.icm.schedule import stream


class Question(NamedTuple):
    """What is the label of `example`, an index, given the others' labels? `given` has none for the example itself."""

    given: Labels
    example: int


def question(labels: Labels, index: int) -> Question:
    """The example's label given all others: log p(· | x_i, D∖i)."""
    return Question(without(labels, index), index)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a call. `text` ends where the label begins; with `chat` it is the user's message to a chat model.
    `example` is the id of the example that is asked about."""

    example: str
    text: str
    words: tuple[str, str]
    chat: bool = False


class Prompts:
    """Makes the prompts of a dataset. `seed` places the examples in the tree."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset = dataset
        self._place: list[int] = stream(seed, "places").permutation(len(dataset)).tolist()
        self._begin = f"{dataset.instruction}\n\n" if dataset.instruction else ""
        # Demonstrations are rendered once: (label 0, label 1) of each.
        self._demonstrations = [
            tuple(f"{example.text}{word}\n\n" for word in dataset.words.in_text) for example in dataset.examples
        ]

    def order(self, given: Labels, index: int) -> list[int]:
        """The labelled examples as they stand in the prompt: far in the tree first. The highest bit in which two
        places differ says how far apart they are."""
        own = self._place[index]
        return sorted(labelled(given), key=lambda i: (-(self._place[i] ^ own).bit_length(), self._place[i]))

    def render(self, asked: Question) -> Prompt:
        """Instruction, demonstrations with their labels, and the example's text up to its label."""
        shown = [self._demonstrations[i][asked.given[i]] for i in self.order(asked.given, asked.example)]
        example = self._dataset.examples[asked.example]
        return Prompt(example.id, "".join([self._begin, *shown, example.text]), self._dataset.words.in_text)

    def chat(self, index: int) -> Prompt:
        """The example as a message to a chat model, without demonstrations."""
        example, words = self._dataset.examples[index], self._dataset.words.in_chat
        ask = f"Answer with one word, {words[1]} or {words[0]}."
        return Prompt(example.id, f"{self._begin}{example.text}\n\n{ask}", words, chat=True)

    def longest(self, indices: Sequence[int]) -> int:
        """The index whose text is longest."""
        return max(indices, key=lambda index: len(self._dataset.examples[index].text))
