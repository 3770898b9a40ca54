"""ICM and baselines on the same examples and scorer: the accuracy table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serve_app.errors import ServeAppError
from serve_app.workloads.icm.evaluation import baselines
from serve_app.workloads.icm.evaluation.gold import Accuracy, accuracy, over_seeds
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.labels import Labels
from serve_app.workloads.icm.scoring.protocol import Scorer

ZERO_SHOT, CHAT, RANDOM, BOOTSTRAPPED, GOLD = (
    "zero-shot", "chat", "random-label few-shot", "bootstrapped few-shot", "gold few-shot",
)  # fmt: skip


def compare(
    dataset: Dataset,
    score: Scorer,
    gold: Labels,
    *,
    shots: int,
    seeds: Sequence[int],
    skipped: Callable[[str, ServeAppError], None],
) -> dict[str, Accuracy]:
    """Each baseline's accuracy, once per seed if it draws examples. One that cannot run (such as chat without a
    template) goes to `skipped`.
    """
    runs: dict[str, Callable[[int], Labels]] = {
        ZERO_SHOT: lambda seed: baselines.zero_shot(dataset, score),
        CHAT: lambda seed: baselines.chat(dataset, score),
        RANDOM: lambda seed: baselines.random_few_shot(dataset, score, shots=shots, seed=seed),
        BOOTSTRAPPED: lambda seed: baselines.bootstrapped_few_shot(dataset, score, shots=shots, seed=seed),
        GOLD: lambda seed: baselines.gold_few_shot(dataset, score, gold, shots=shots, seed=seed),
    }
    found = {}
    for name, run in runs.items():
        once = name in (ZERO_SHOT, CHAT)  # nothing is drawn
        try:
            found[name] = over_seeds([accuracy(run(seed), gold) for seed in (seeds[:1] if once else seeds)])
        except ServeAppError as error:
            skipped(name, error)
    return found
