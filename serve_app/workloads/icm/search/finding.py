"""A search's result: every example's label, and the labels' coherence by the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from serve_app.workloads.icm.examples.consistency import Constraints
from serve_app.workloads.icm.examples.labels import NONE, Labels, labelled, put
from serve_app.workloads.icm.schedule import stream
from serve_app.workloads.icm.scoring.prompts import question
from serve_app.workloads.icm.search.search import Search

# Half-way between chance and certainty.
COHERENT = 0.75


class Label(msgspec.Struct, frozen=True):
    """An example's label, with its probability (of the two) given all others. `searched` is false if predicted at the
    end, without an accepted proposal."""

    id: str
    label: int
    word: str
    probability: float
    searched: bool


class Finding(msgspec.Struct, frozen=True):
    """`confidence` is the searched labels' mean probability, each given all others; `agreement` the share that are most
    probable. 0.5 is chance. `shuffled_confidence` has the same labels on other examples: the model's belief whatever is
    shown. All measure coherence, not truth. `low` and `high` are normal 95 % bounds of the confidence over examples.
    `inconsistent` counts pairs among all labels, predicted ones included."""

    labels: tuple[Label, ...]
    confidence: float
    low: float
    high: float
    agreement: float
    shuffled_confidence: float
    inconsistent: int

    @property
    def coherent(self) -> bool:
        """Whether labels cohere, and more than shuffled."""
        return self.low >= COHERENT and self.low > self.shuffled_confidence


def conclude(search: Search) -> Finding:
    """Label the rest and evaluate, in one call; raises ScoringFailed."""
    answers, labels = search.answers, search.state.current.labels
    found = labelled(labels)
    shuffled = _shuffle(labels, search.settings.seed)
    # Missing labels follow from found ones, not from each other.
    wanted = {question(labels, index) for index in range(len(labels))}
    answers.fill(wanted | {question(shuffled, index) for index in found})
    chances = [share(answers.logprobs(question(labels, index))) for index in range(len(labels))]
    own = [_of(chances[index], labels[index]) for index in found]
    mixed = [_of(share(answers.logprobs(question(shuffled, index))), shuffled[index]) for index in found]
    given = tuple(_label(search, index, labels[index], chance) for index, chance in enumerate(chances))
    mean = math.fsum(own) / len(own)
    error = 1.96 * math.sqrt(math.fsum((p - mean) ** 2 for p in own)) / len(own)
    return Finding(
        labels=given,
        confidence=mean,
        low=max(0.0, mean - error),
        high=min(1.0, mean + error),
        agreement=sum(p > 0.5 for p in own) / len(own),
        shuffled_confidence=math.fsum(mixed) / len(mixed),
        inconsistent=Constraints(search.dataset.relations, len(given)).count(bytes(one.label for one in given)),
    )


def share(logprobs: tuple[float, float]) -> float:
    """Probability of label 1 of the two."""
    return 1 / (1 + math.exp(min(700.0, logprobs[0] - logprobs[1])))


def most_probable(logprobs: Sequence[tuple[float, float]]) -> Labels:
    """The more probable label."""
    return bytes(int(positive > negative) for negative, positive in logprobs)


def _of(chance: float, label: int) -> float:
    return chance if label == 1 else 1 - chance


def _label(search: Search, index: int, label: int, chance: float) -> Label:
    given = int(chance > 0.5) if label == NONE else label
    example = search.dataset.examples[index]
    return Label(example.id, given, search.dataset.words[given].strip(), _of(chance, given), label != NONE)


def _shuffle(labels: Labels, seed: int) -> Labels:
    found = labelled(labels)
    order = stream(seed, "shuffle").permutation(found).tolist()
    return put(labels, *((index, labels[other]) for index, other in zip(found, order, strict=True)))
