"""One call before a search, to fail within a second instead of an hour.

It scores the search's longest possible prompt, which checks context length, single-token labels and log-probabilities.
"""

from __future__ import annotations

from serve_app.errors import ScoringFailed
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.scoring.prompts import Prompts, question
from serve_app.workloads.icm.scoring.protocol import Scorer, ask


def preflight(dataset: Dataset, settings: SearchSettings, score: Scorer) -> str:
    """The result. Raises BadSettings for label words of several tokens, ScoringFailed naming the longest row if its
    prompt does not fit."""
    prompts = Prompts(dataset, settings.seed)
    longest = prompts.longest(range(len(dataset)))
    # Both words, since one may be longer.
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
