"""A search's call: prompts in, label log-probabilities out.

A `Scorer` is any callable (see `scorers.py`). Rows without an answer are a `Failure`, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from serve_app.errors import ScoringFailed
from serve_app.workloads.icm.examples.labels import Labels, labelled
from serve_app.workloads.icm.scoring.prompts import Prompt, Prompts, Question, question


class LabelLogprobs(NamedTuple):
    """Natural log-probabilities of the two label words as next token, label 0 first, and their cost."""

    logprobs: tuple[float, float]
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def mass(self) -> float:
        """Both words' probability."""
        return sum(map(math.exp, self.logprobs))


class Failure(NamedTuple):
    """A row without an answer; `invalid` ones would fail again."""

    error: str
    invalid: bool = False


class Scorer(Protocol):
    """One answer per prompt, in order, in one call."""

    def __call__(self, prompts: Sequence[Prompt], /) -> Sequence[LabelLogprobs | Failure]: ...


@dataclass(slots=True)
class Usage:
    """Total cost of calls."""

    calls: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    mass: float = 0.0

    @property
    def cached_share(self) -> float | None:
        """Share of prompt tokens from the prefix cache; None if not counted."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    def take(self) -> Usage:
        """Usage since the last take, and reset."""
        taken = Usage(self.calls, self.prompts, self.prompt_tokens, self.cached_tokens, self.mass)
        self.calls = self.prompts = self.prompt_tokens = self.cached_tokens = 0
        self.mass = 0.0
        return taken


def ask(score: Scorer, prompts: Sequence[Prompt], usage: Usage | None = None) -> list[LabelLogprobs]:
    """Score all prompts in one call. Raises ScoringFailed naming the first row without a finite answer."""
    answers = score(prompts)
    if len(answers) != len(prompts):
        raise ScoringFailed(f"the scorer gave {len(answers)} answers to {len(prompts)} prompts")
    good = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if isinstance(answer, Failure):
            raise ScoringFailed(_explain(prompt, answer, sum(isinstance(a, Failure) for a in answers), len(prompts)))
        if not all(map(math.isfinite, answer.logprobs)):
            raise ScoringFailed(f"example '{prompt.example}': log-probabilities {answer.logprobs} are not finite")
        good.append(answer)
    if usage is not None and prompts:
        usage.calls += 1
        usage.prompts += len(good)
        usage.prompt_tokens += sum(answer.prompt_tokens for answer in good)
        usage.cached_tokens += sum(answer.cached_tokens for answer in good)
        usage.mass += math.fsum(answer.mass for answer in good)
    return good


def _explain(prompt: Prompt, failure: Failure, failed: int, count: int) -> str:
    fix = (
        "another try would give the same: of a prompt that is too long, lower --batch-size, shorten the row or serve "
        "with a larger max_model_len; for label words that are not shown, choose likelier ones (--words)"
        if failure.invalid
        else "nothing is lost: --resume goes on from the checkpoint"
    )
    return f"example '{prompt.example}' ({failed} of {count} prompts) has no answer: {failure.error}; {fix}"


class Unanswered(Exception):
    """Raised for missing answers; `candidates` are the labellings concerned."""

    def __init__(self, questions: Iterable[Question], candidates: Sequence[Labels] = ()) -> None:
        self.questions = set(questions)
        self.candidates = tuple(candidates)


@dataclass(slots=True)
class Answers:
    """The answered questions. Reading a missing one raises Unanswered; `fill` asks."""

    prompts: Prompts
    score: Scorer
    usage: Usage = field(default_factory=Usage)
    known: dict[Question, tuple[float, float]] = field(default_factory=dict)

    def logprobs(self, asked: Question) -> tuple[float, float]:
        """Of both labels. Raises Unanswered."""
        if asked not in self.known:
            raise Unanswered([asked])
        return self.known[asked]

    def require(self, candidates: Sequence[Labels], ahead: Sequence[Labels] = ()) -> None:
        """Raise Unanswered for all missing leave-one-out probabilities of the candidates, then of `ahead`."""
        if missing := self._missing(candidates):
            raise Unanswered([*missing, *self._missing(ahead)], [*candidates, *ahead])

    def _missing(self, candidates: Sequence[Labels]) -> list[Question]:
        asked = (question(labels, index) for labels in candidates for index in labelled(labels))
        return [one for one in asked if one not in self.known]

    def leave_one_out(self, labels: Labels) -> list[tuple[float, float]]:
        """log p(· | x_i, D∖i) of labelled examples by index. Raises Unanswered."""
        self.require([labels])
        return [self.known[question(labels, index)] for index in labelled(labels)]

    def fill(self, questions: Iterable[Question]) -> None:
        """Ask missing questions in one call. Raises ScoringFailed and then keeps nothing."""
        # Set order varies by process and would change batches.
        asked = sorted(one for one in set(questions) if one not in self.known)
        answers = ask(self.score, [self.prompts.render(one) for one in asked], self.usage) if asked else []
        self.known.update((one, answer.logprobs) for one, answer in zip(asked, answers, strict=True))

    def keep(self, questions: Iterable[Question]) -> None:
        self.known = {one: self.known[one] for one in questions if one in self.known}
