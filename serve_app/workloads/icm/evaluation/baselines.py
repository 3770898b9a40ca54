"""Cheaper ways to labels on the same data and scorer: zero-shot, chat, random-label, bootstrapped and gold few-shot.

Each gives a label to every example, and asks all examples in one call a round. The gold labels of the last are an
argument; the others see none. Few-shot examples are drawn anew for each seed, and never show an example its own label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve_app.errors import BadSettings
from serve_app.workloads.icm.examples.consistency import CONSISTENT, Constraints
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.labels import Labels, put, unlabelled
from serve_app.workloads.icm.schedule import stream
from serve_app.workloads.icm.scoring.prompts import Prompts, question
from serve_app.workloads.icm.scoring.protocol import Scorer, Usage, ask
from serve_app.workloads.icm.search.finding import most_probable

Logprobs = Sequence[tuple[float, float]]
# Rounds of bootstrapping after the zero-shot labels; later ones change little.
ROUNDS = 3


def zero_shot(dataset: Dataset, score: Scorer, usage: Usage | None = None) -> Labels:
    """The more probable label word after the example alone."""
    return most_probable(_few_shot(dataset, score, unlabelled(len(dataset)), 0, usage))


def chat(dataset: Dataset, score: Scorer, usage: Usage | None = None) -> Labels:
    """The same, asked as a message to the model's chat template."""
    prompts = Prompts(dataset, 0)
    answers = ask(score, [prompts.chat(index) for index in range(len(dataset))], usage)
    return most_probable([answer.logprobs for answer in answers])


def random_few_shot(dataset: Dataset, score: Scorer, *, shots: int, seed: int, usage: Usage | None = None) -> Labels:
    """`shots` examples with random labels, half of each, as demonstrations."""
    rng = stream(seed, "baseline")
    chosen = _choose(rng, len(dataset), shots)
    labels = rng.permutation([position % 2 for position in range(len(chosen))]).tolist()
    shown = put(unlabelled(len(dataset)), *zip(chosen, labels, strict=True))
    return most_probable(_few_shot(dataset, score, shown, seed, usage))


def gold_few_shot(
    dataset: Dataset, score: Scorer, gold: Labels, *, shots: int, seed: int, usage: Usage | None = None
) -> Labels:
    """`shots` examples with their gold labels as demonstrations: what supervision of that size gives."""
    return most_probable(_few_shot(dataset, score, _shown(gold, shots, seed, 0), seed, usage))


def bootstrapped_few_shot(
    dataset: Dataset, score: Scorer, *, shots: int, seed: int, rounds: int = ROUNDS, usage: Usage | None = None
) -> Labels:
    """Demonstrations with the model's own last labels, made consistent, again and again; begins with zero-shot."""
    logprobs = _few_shot(dataset, score, unlabelled(len(dataset)), seed, usage)
    for number in range(1, rounds + 1):
        shown = _shown(make_consistent(dataset, logprobs), shots, seed, number)
        logprobs = _few_shot(dataset, score, shown, seed, usage)
    return make_consistent(dataset, logprobs)


def make_consistent(dataset: Dataset, logprobs: Logprobs) -> Labels:
    """The most probable labels, each inconsistent pair set to its most probable consistent one, the surest pair first.

    A pass over the pairs may undo what another settled; after as many passes as there are relations it stops.
    """
    constraints = Constraints(dataset.relations, len(dataset))
    labels = most_probable(logprobs)
    for _ in range(len(dataset.relations)):
        violated = constraints.violations(labels)
        if not violated:
            break
        options = [
            (logprobs[pair.first][first] + logprobs[pair.second][second], pair, first, second)
            for pair in violated
            for first, second in CONSISTENT[pair.kind]
        ]
        _, pair, first, second = max(options, key=lambda option: option[0])
        labels = put(labels, (pair.first, first), (pair.second, second))
    return labels


def _shown(labels: Labels, shots: int, seed: int, number: int) -> Labels:
    chosen = _choose(stream(seed, "baseline", number), len(labels), shots)
    return put(unlabelled(len(labels)), *((index, labels[index]) for index in chosen))


def _choose(rng: np.random.Generator, count: int, shots: int) -> list[int]:
    if shots < 1:
        raise BadSettings(f"--shots {shots} must be at least 1")
    chosen: list[int] = rng.permutation(count)[:shots].tolist()
    return chosen


def _few_shot(dataset: Dataset, score: Scorer, shown: Labels, seed: int, usage: Usage | None) -> Logprobs:
    prompts = Prompts(dataset, seed)
    asked = [prompts.render(question(shown, index)) for index in range(len(dataset))]
    return [answer.logprobs for answer in ask(score, asked, usage)]
