"""Models that a test knows all about, as scorers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from serve_app.workloads.icm.examples.consistency import Kind, Relation
from serve_app.workloads.icm.examples.dataset import Dataset, Example, LabelWords
from serve_app.workloads.icm.scoring.prompts import Prompt
from serve_app.workloads.icm.scoring.protocol import LabelLogprobs

# Right demonstrations after which `Planted` has 76 % (tanh 1) of its pull.
CONVINCING = 16
WORDS = LabelWords(" no", " yes")


def dataset(size: int, kinds: Sequence[Kind] = (), *, group: int = 1) -> Dataset:
    """`size` examples, `group` to a group; the n-th kind relates examples 2n and 2n + 1."""
    examples = tuple(Example(f"e{i}", f"example {i} is", f"g{i // group}") for i in range(size))
    relations = tuple(Relation(kind, 2 * n, 2 * n + 1) for n, kind in enumerate(kinds) if 2 * n + 1 < size)
    return Dataset("test", examples, relations, WORDS, "Say yes or no.")


def of_logit(logit: float, prompt: Prompt) -> LabelLogprobs:
    """P(label 1) is its logistic function; tokens are characters, none cached."""
    return LabelLogprobs((-math.log1p(math.exp(logit)), -math.log1p(math.exp(-logit))), len(prompt.text))


class Noise:
    """A logit for each prompt, hashed from its text: uniform, up to 2·spread; any labelling has scores of its own."""

    def __init__(self, seed: int = 0, spread: float = 1.0) -> None:
        self.seed, self.spread = seed, spread
        self.sizes: list[int] = []

    def __call__(self, prompts: Sequence[Prompt]) -> list[LabelLogprobs]:
        self.sizes.append(len(prompts))
        return [of_logit(self.logit(prompt.text), prompt) for prompt in prompts]

    def logit(self, text: str) -> float:
        drawn = int.from_bytes(hashlib.blake2b(f"{self.seed} {text}".encode(), digest_size=4).digest())
        return (drawn / 2**31 - 1) * 2 * self.spread


class Planted:
    """Believes what is right of each example with share `known` (a logit of ±1), and is coherent on truths: each right
    demonstration makes it surer of what is right (`pull`, a logit, is the most), a wrong one says nothing to it.
    """

    def __init__(self, data: Dataset, gold: bytes, *, known: float, pull: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._truth = [1 if label else -1 for label in gold]
        right = rng.permutation(len(gold)) < known * len(gold)
        self._belief = [truth * (1 if knows else -1) for truth, knows in zip(self._truth, right, strict=True)]
        self._pull = pull
        self._index = {example.id: index for index, example in enumerate(data.examples)}
        words = data.words.in_text
        self._shown = {
            f"{example.text}{words[label]}": int(label == gold[index])
            for index, example in enumerate(data.examples)
            for label in (0, 1)
        }

    def __call__(self, prompts: Sequence[Prompt]) -> list[LabelLogprobs]:
        return [of_logit(self._logit(prompt), prompt) for prompt in prompts]

    def _logit(self, prompt: Prompt) -> float:
        index = self._index[prompt.example]
        seen = sum(self._shown.get(part, 0) for part in prompt.text.split("\n\n"))
        return self._belief[index] + self._truth[index] * self._pull * math.tanh(seen / CONVINCING)
