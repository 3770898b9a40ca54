"""Internal coherence maximisation: Algorithm 1 of Wen et al. 2025, simulated annealing over labellings.

    U(D) = α·P(D) − I(D)          P: how well each label follows from the others, I: inconsistent pairs

Uses examples, relations and a scorer; a `Dataset` has no gold labels.

An iteration depends on the state, random numbers (of seed and iteration) and answered questions. A missing answer stops
it (`Unanswered`); it is asked in one call with likely later questions, and the iteration restarts. Asking ahead keeps
the chain's path, because answers and random numbers do not depend on when they are asked. Asked ahead are

- the resolutions of the pairs that the consistency fix tries next if the first one's do not make U grow,
- the next unlabelled examples' labels, after accepting or rejecting this proposal (labelled examples have their
  leave-one-out answers),
- the next proposals if all before them are rejected (`speculate`), as most are late in the annealing; they serve up to
  the first accepted one.

So an iteration takes one call, even if it needs the proposal's label, its U, and U of each resolution.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, islice

import msgspec

from serve_app.errors import BadSettings
from serve_app.workloads.icm.examples.consistency import CONSISTENT, Constraints, Relation
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.labels import NONE, Labels, differences, labelled, put, unlabelled
from serve_app.workloads.icm.schedule import Draws, SearchSettings, draw, stream
from serve_app.workloads.icm.scoring.prompts import Prompts, Question, question
from serve_app.workloads.icm.scoring.protocol import Answers, Scorer, Unanswered
from serve_app.workloads.icm.search.state import Evaluated, State, Step

# Iterations to search ahead for questions; most need none.
LOOK_AHEAD = 64
# Labels asked per labelling, a prompt each: a repeated proposal makes no call in which to ask later ones.
LABELS_AHEAD = 4
# Pairs whose resolutions are asked with the first's, as most fail.
PAIRS_AHEAD = 3


class Search:
    """Iterate for the steps; `state` is for resuming. Raises BadSettings for fewer examples than seeds, ScoringFailed
    for a prompt without an answer, with the previous state kept."""

    def __init__(self, dataset: Dataset, settings: SearchSettings, score: Scorer, state: State | None = None) -> None:
        if settings.num_seed > len(dataset):
            raise BadSettings(f"--num-seed {settings.num_seed} is more than the {len(dataset)} examples there are")
        self.dataset = dataset
        self.settings = settings
        self.answers = Answers(Prompts(dataset, settings.seed), score)
        self._rules = settings.rules
        self._constraints = Constraints(dataset.relations, len(dataset))
        self._groups = [example.group for example in dataset.examples]
        self._state = state
        if state is not None:
            asked = [question(state.current.labels, index) for index in labelled(state.current.labels)]
            self.answers.known.update(zip(asked, state.current.logprobs, strict=True))

    @property
    def state(self) -> State:
        """The state; the first call makes and scores the initial labelling."""
        if self._state is None:
            self._state = State(0, self._initial())
            self._forget()
        return self._state

    def __iter__(self) -> Iterator[Step]:
        while self.state.iteration < self.settings.iterations:
            self._state, step = self._step(self.state)
            if step.accepted and step.changes:
                self._forget()
            yield step

    def _step(self, state: State) -> tuple[State, Step]:
        while True:
            try:
                index, label, proposed = self._propose(state)
                break
            except Unanswered as missing:
                self.answers.fill(missing.questions | self._ahead(state, missing.candidates))
        return self._decide(state, index, label, proposed)

    def _propose(self, state: State) -> tuple[int, int, Evaluated]:
        """Lines 5 to 8: an example, its most probable label, consistency. Raises Unanswered."""
        draws = self._draws(state.iteration + 1)
        labels = state.current.labels
        index = self._sample(labels, draws)
        negative, positive = self.answers.logprobs(question(labels, index))
        label = int(positive > negative)
        forced = self._rules.forced_fix
        # The published code skips unchanged labels; the paper may still fix them.
        if labels[index] == label and (forced or not state.current.inconsistent):
            return index, label, state.current
        proposed = put(labels, (index, label))
        return index, label, self._fix(proposed, state.current, self._alpha(state), draws, forced=forced)

    def _decide(self, state: State, index: int, label: int, proposed: Evaluated) -> tuple[State, Step]:
        """Lines 9 to 13: accept if U grows, else with probability exp(Δ/T)."""
        iteration = state.iteration + 1
        alpha = self._alpha(state)
        delta = self.utility(proposed, alpha) - self.utility(state.current, alpha)
        temperature = self.settings.temperature(iteration, state.accepted)
        # min: large gains would overflow.
        accepted = self._draws(iteration).accept < math.exp(min(0.0, delta / temperature))
        changes = differences(state.current.labels, proposed.labels)
        after = proposed if accepted else state.current
        new = self._count(msgspec.structs.replace(state, iteration=iteration, current=after), accepted, bool(changes))
        usage = self.answers.usage.take()
        return new, Step(
            iteration=iteration,
            example=self.dataset.examples[index].id,
            label=label,
            changes=tuple((self.dataset.examples[i].id, value) for i, value in changes),
            delta=delta,
            temperature=temperature,
            alpha=alpha,
            accepted=accepted,
            utility=self.utility(after, alpha),
            predictability=self.predictability(after),
            inconsistent=after.inconsistent,
            labelled=len(after.logprobs),
            calls=usage.calls,
            prompts=usage.prompts,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            label_mass=usage.mass / usage.prompts if usage.prompts else None,
        )

    def _count(self, state: State, accepted: bool, changed: bool) -> State:
        """Count accepted and rejected changes, which decide about α."""
        if not changed:
            return state
        recent = (*state.recent, not accepted)[-self.settings.rejection_window :]
        level = state.alpha_level
        full = len(recent) == self.settings.rejection_window
        if full and sum(recent) > self.settings.most_rejected * len(recent) and level + 1 < len(self.settings.alphas):
            level, recent = level + 1, ()
        return msgspec.structs.replace(state, accepted=state.accepted + accepted, alpha_level=level, recent=recent)

    def _initial(self) -> Evaluated:
        """Lines 1 and 2: `num_seed` random examples with random labels, made consistent."""
        rng = stream(self.settings.seed, "seeds")
        chosen = rng.permutation(len(self.dataset))[: self.settings.num_seed].tolist()
        labels = put(
            unlabelled(len(self.dataset)), *zip(chosen, rng.integers(2, size=len(chosen)).tolist(), strict=True)
        )
        nothing = Evaluated(unlabelled(len(self.dataset)), (), 0)
        while True:
            try:
                return self._fix(labels, nothing, self.settings.alphas[0], self._draws(0), forced=False)
            except Unanswered as missing:
                self.answers.fill(missing.questions | self._next_labels(missing.candidates, 1))

    def _sample(self, labels: Labels, draws: Draws) -> int:
        """Line 5: unlabelled examples in partly labelled groups weigh `group_weight`, others 1."""
        return _drawn(self._weights(labels), draws)

    def _weights(self, labels: Labels) -> list[float]:
        """Cumulative example weights."""
        begun = {self._groups[index] for index in labelled(labels)} - {""}
        heavy = self.settings.group_weight
        weights = (
            heavy if label == NONE and group in begun else 1.0
            for label, group in zip(labels, self._groups, strict=True)
        )
        return list(accumulate(weights))

    def _fix(self, labels: Labels, before: Evaluated, alpha: float, draws: Draws, *, forced: bool) -> Evaluated:
        """Algorithm 2: resolve inconsistent pairs in random order, each the best way, while U does not fall; `forced`
        takes the first resolution anyway.

        Raises Unanswered for the labelling, the first pair's resolutions and those of the next pairs together.
        """
        failed: set[Relation] = set()
        for number in range(len(draws.pairs)):
            pairs = [relation for relation in self._constraints.violations(labels) if relation not in failed]
            turns = _in_turn(pairs, draws.pairs[number : number + 1 + PAIRS_AHEAD])
            options, *later = [self._resolutions(labels, pair) for pair in turns] or [[]]
            self.answers.require([labels, *options], [] if forced else list(chain.from_iterable(later)))
            if not options:
                break
            best = max((self._evaluate(option, before) for option in options), key=lambda one: self.utility(one, alpha))
            if forced or self.utility(best, alpha) >= self.utility(self._evaluate(labels, before), alpha):
                labels, failed, forced = best.labels, set(), False
            else:
                failed.add(turns[0])
        return self._evaluate(labels, before)

    def _resolutions(self, labels: Labels, pair: Relation) -> list[Labels]:
        """Labellings that satisfy the relation, otherwise unchanged."""
        allowed = CONSISTENT[pair.kind]
        if pair.kind == "contradiction" and not self._rules.both_false:
            allowed = tuple(option for option in allowed if option != (0, 0))
        return [put(labels, (pair.first, first), (pair.second, second)) for first, second in allowed]

    def _evaluate(self, labels: Labels, before: Evaluated) -> Evaluated:
        """P's terms, and I counted from `before`. Raises Unanswered."""
        changed = [index for index, _ in differences(before.labels, labels)]
        inconsistent = self._constraints.count_after(before.inconsistent, before.labels, labels, changed)
        return Evaluated(labels, tuple(self.answers.leave_one_out(labels)), inconsistent)

    def predictability(self, evaluated: Evaluated) -> float:
        """P(D)."""
        return self._rules.predictability([label for label in evaluated.labels if label != NONE], evaluated.logprobs)

    def utility(self, evaluated: Evaluated, alpha: float) -> float:
        """U(D) = α·P(D) − I(D)."""
        return alpha * self.predictability(evaluated) - evaluated.inconsistent

    def _alpha(self, state: State) -> float:
        return self.settings.alphas[state.alpha_level]

    def _draws(self, iteration: int) -> Draws:
        return draw(self.settings.seed, iteration, self.settings.fix_rounds)

    def _ahead(self, state: State, candidates: Sequence[Labels]) -> set[Question]:
        """Likely questions of the next iterations, on acceptance or rejection."""
        questions = self._next_labels([*candidates, state.current.labels], state.iteration + 2)
        width, state = self._width(state), self._rejected(state, changed=True)
        last = min(state.iteration + LOOK_AHEAD, self.settings.iterations)
        while width and state.iteration < last:
            try:
                _, _, proposed = self._propose(state)
                changed = proposed.labels != state.current.labels
            except Unanswered as missing:
                questions |= missing.questions
                width, changed = width - 1, True
            state = self._rejected(state, changed)
        return questions

    def _rejected(self, state: State, changed: bool) -> State:
        """The state after a rejection."""
        return self._count(msgspec.structs.replace(state, iteration=state.iteration + 1), False, changed)

    def _width(self, state: State) -> int:
        """Later proposals worth scoring: the expected run of rejections at the recent rate."""
        accepted = state.recent.count(False)
        expected = len(state.recent) if not accepted else state.recent.count(True) // accepted
        return min(self.settings.speculate, expected)

    def _next_labels(self, candidates: Sequence[Labels], iteration: int) -> set[Question]:
        """Labels of the first unlabelled examples drawn from `iteration` on, per labelling."""
        ahead = range(iteration, min(iteration + LOOK_AHEAD, self.settings.iterations + 1))
        questions = set()
        for labels in candidates:
            weights = self._weights(labels)
            drawn = (_drawn(weights, self._draws(at)) for at in ahead)
            bare = dict.fromkeys(index for index in drawn if labels[index] == NONE)
            questions |= {question(labels, index) for index in islice(bare, LABELS_AHEAD)}
        return questions

    def _forget(self) -> None:
        """Only questions about the current labelling recur."""
        labels = self.state.current.labels
        self.answers.keep(question(labels, index) for index in range(len(labels)))


def _in_turn(pairs: Sequence[Relation], draws: Sequence[float]) -> list[Relation]:
    """The drawn pairs, without replacement."""
    left = list(pairs)
    return [left.pop(int(drawn * len(left))) for drawn in draws[: len(pairs)]]


def _drawn(weights: Sequence[float], draws: Draws) -> int:
    """The index drawn by cumulative weights."""
    return min(bisect(weights, draws.example * weights[-1]), len(weights) - 1)
