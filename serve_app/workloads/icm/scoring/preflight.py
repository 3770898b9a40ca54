"""One call before a search, so that what cannot work fails in a second and not after an hour.

It asks the longest prompt that the search may come to: it fits into the model's context, the label words are one token
each, and log-probabilities come back.
"""

from __future__ import annotations

from serve_app.errors import ScoringFailed
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.scoring.prompts import Prompts, question
from serve_app.workloads.icm.scoring.protocol import Scorer, ask


def preflight(dataset: Dataset, settings: SearchSettings, score: Scorer) -> str:
    """What was seen. Raises BadSettings for label words that are not one token, ScoringFailed naming the longest row
    where the prompt does not fit."""
    prompts = Prompts(dataset, settings.seed)
    longest = prompts.longest(range(len(dataset)))
    # All have a label; alternating ones, as one word may have more characters than the other.
    labels = bytes(index % 2 for index in range(len(dataset)))
    try:
        (answer,) = ask(score, [prompts.render(question(labels, longest))])
    except ScoringFailed as error:
        example = dataset.examples[longest]
        raise ScoringFailed(
            f"a prompt of all {len(dataset)} examples cannot be scored: {error}; the longest row is "
            f"'{example.id}' with {len(example.text):,} characters"
        ) from error
    return f"{answer.prompt_tokens:,} tokens, probability of the two label words {answer.mass:.3g}"
