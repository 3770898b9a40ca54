"""Baselines on the same data and scorer: zero-shot, chat, random-label, bootstrapped and gold few-shot.

Each labels every example, with one call per round. Only the last gets gold labels, as an argument. Few-shot examples
are drawn per seed and exclude the example itself.
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
# Bootstrapping rounds after zero-shot; more change little.
ROUNDS = 3


def zero_shot(dataset: Dataset, score: Scorer, usage: Usage | None = None) -> Labels:
    """The more probable label after the example alone."""
    return most_probable(_few_shot(dataset, score, unlabelled(len(dataset)), 0, usage))


def chat(dataset: Dataset, score: Scorer, usage: Usage | None = None) -> Labels:
    """The same as a message in the model's chat template."""
    prompts = Prompts(dataset, 0)
    answers = ask(score, [prompts.chat(index) for index in range(len(dataset))], usage)
    return most_probable([answer.logprobs for answer in answers])


def random_few_shot(dataset: Dataset, score: Scorer, *, shots: int, seed: int, usage: Usage | None = None) -> Labels:
    """`shots` demonstrations with random labels, half of each."""
    rng = stream(seed, "baseline")
    chosen = _choose(rng, len(dataset), shots)
    labels = rng.permutation([position % 2 for position in range(len(chosen))]).tolist()
    shown = put(unlabelled(len(dataset)), *zip(chosen, labels, strict=True))
    return most_probable(_few_shot(dataset, score, shown, seed, usage))


def gold_few_shot(
    dataset: Dataset, score: Scorer, gold: Labels, *, shots: int, seed: int, usage: Usage | None = None
) -> Labels:
    """`shots` demonstrations with gold labels: supervision of that size."""
    return most_probable(_few_shot(dataset, score, _shown(gold, shots, seed, 0), seed, usage))


def bootstrapped_few_shot(
    dataset: Dataset, score: Scorer, *, shots: int, seed: int, rounds: int = ROUNDS, usage: Usage | None = None
) -> Labels:
    """Demonstrations with the model's last labels, made consistent; rounds begin with zero-shot."""
    logprobs = _few_shot(dataset, score, unlabelled(len(dataset)), seed, usage)
    for number in range(1, rounds + 1):
        shown = _shown(make_consistent(dataset, logprobs), shots, seed, number)
        logprobs = _few_shot(dataset, score, shown, seed, usage)
    return make_consistent(dataset, logprobs)


def make_consistent(dataset: Dataset, logprobs: Logprobs) -> Labels:
    """The most probable labels; inconsistent pairs get their most probable consistent ones, surest first. A pass may
    undo another pair, so passes stop at the number of relations.
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
