import math
from collections import Counter
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import ScoringFailed
from serve_app.workloads.icm.evaluation.gold import Gold
from serve_app.workloads.icm.examples.consistency import CONSISTENT, Constraints, Kind, Relation
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.labels import NONE, Labels, labelled, put, without
from serve_app.workloads.icm.examples.testbeds import BUNDLED, load
from serve_app.workloads.icm.schedule import SearchSettings, draw
from serve_app.workloads.icm.scoring.prompts import Prompts, Question
from serve_app.workloads.icm.scoring.protocol import Failure, LabelLogprobs, Scorer, Unanswered
from serve_app.workloads.icm.search.search import Search
from serve_app.workloads.icm.search.state import Step
from tests.workloads.icm.models import Noise, Planted, dataset
from tests.workloads.icm.search.kit import run

KINDS: tuple[Kind, ...] = ("contradiction", "exclusion", "implication", "equivalence")
kinds = st.lists(st.sampled_from(KINDS), max_size=3)


class Plain:
    """Algorithms 1 and 2 as the paper has them, one question after the other, every U from scratch."""

    def __init__(self, data: Dataset, asked: SearchSettings, score: Scorer) -> None:
        self.data, self.asked, self.score = data, asked, score
        self.prompts = Prompts(data, asked.seed)
        self.logprobs = cache(self._logprobs)

    def _logprobs(self, labels: Labels, index: int) -> tuple[float, float]:
        (answer,) = self.score([self.prompts.render(Question(without(labels, index), index))])
        assert isinstance(answer, LabelLogprobs)
        return answer.logprobs

    def utility(self, labels: Labels, alpha: float) -> float:
        given = labelled(labels)
        terms = [self.logprobs(labels, index) for index in given]
        inconsistent = sum(relation.violated(labels) for relation in self.data.relations)
        return alpha * self.asked.rules.predictability([labels[i] for i in given], terms) - inconsistent

    def fix(self, labels: Labels, alpha: float, drawn: tuple[float, ...]) -> Labels:
        failed: set[Relation] = set()
        for number in drawn:
            pairs = [r for r in self.data.relations if r.violated(labels) and r not in failed]
            if not pairs:
                break
            pair = pairs[int(number * len(pairs))]
            options = [put(labels, (pair.first, a), (pair.second, b)) for a, b in CONSISTENT[pair.kind]]
            best = max(options, key=lambda option: self.utility(option, alpha))
            if self.utility(best, alpha) >= self.utility(labels, alpha):
                labels, failed = best, set()
            else:
                failed.add(pair)
        return labels

    def run(self, labels: Labels) -> list[tuple[Labels, bool]]:
        """Labels and acceptance after each iteration, from the initial labels on."""
        path = []
        (alpha,) = self.asked.alphas
        for iteration in range(1, self.asked.iterations + 1):
            drawn = draw(self.asked.seed, iteration, self.asked.fix_rounds)
            begun = {self.data.examples[i].group for i in labelled(labels)}
            weights = [
                100.0 if label == NONE and example.group in begun else 1.0
                for label, example in zip(labels, self.data.examples, strict=True)
            ]
            index = int(np.searchsorted(np.cumsum(weights), drawn.example * sum(weights), side="right"))
            no, yes = self.logprobs(labels, index)
            proposed = self.fix(put(labels, (index, int(yes > no))), alpha, drawn.pairs)
            delta = self.utility(proposed, alpha) - self.utility(labels, alpha)
            accepted = delta > 0 or drawn.accept < math.exp(delta / self.asked.temperature(iteration, 0))
            labels = proposed if accepted else labels
            path.append((labels, accepted))
        return path


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 8), kinds, st.integers(0, 6), st.floats(0.2, 4))
def test_the_chain_takes_the_steps_of_the_plain_algorithm_whatever_is_scored_ahead(
    seed: int, size: int, related: list[Kind], speculate: int, alpha: float
) -> None:
    data = dataset(size, related, group=2)
    asked = SearchSettings(
        iterations=30,
        num_seed=3,
        seed=seed,
        alpha=alpha,
        fixed_alpha=True,
        initial_temperature=5.0,
        speculate=speculate,
    )
    search = Search(data, asked, Noise(seed))
    start = search.state.current.labels
    path = [(search.state.current.labels, step.accepted) for step in search]
    assert path == Plain(data, asked, Noise(seed)).run(start)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), kinds, st.integers(1, 8), st.sampled_from(["paper", "original"]))
def test_speculation_changes_no_step_of_the_trace(seed: int, related: list[Kind], speculate: int, variant: str) -> None:
    data = dataset(7, related, group=2)
    base = SearchSettings(iterations=80, num_seed=3, seed=seed, variant=variant, rejection_window=5)
    alone = [step.without_costs() for step in Search(data, base, Noise(seed))]
    ahead = base.model_copy(update={"speculate": speculate})
    assert [step.without_costs() for step in Search(data, ahead, Noise(seed))] == alone


def test_speculation_saves_calls() -> None:
    # Coherent in its own way, so that late proposals are rejected.
    data, base = dataset(12), SearchSettings(iterations=300, num_seed=4, alpha=50, initial_temperature=0.1)
    calls = []
    for speculate in (0, 8):
        score = Noise(3)
        list(Search(data, base.model_copy(update={"speculate": speculate}), score))
        calls.append(len(score.sizes))
    assert calls[1] < calls[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), kinds, st.sampled_from(["paper", "original"]))
def test_utility_kept_is_utility_computed_anew(seed: int, related: list[Kind], variant: str) -> None:
    data = dataset(6, related, group=2)
    asked = SearchSettings(iterations=40, num_seed=3, seed=seed, variant=variant, alpha=3, fixed_alpha=True)
    plain = Plain(data, asked, Noise(seed))
    _, states = run(data, asked, Noise(seed))
    for state, step in states:
        assert step.utility == pytest.approx(plain.utility(state.current.labels, 3), abs=1e-9)
        assert state.current.inconsistent == Constraints(data.relations, 6).count(state.current.labels)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), kinds, st.lists(st.sampled_from([0, 1, NONE]), min_size=6, max_size=6))
def test_the_consistency_fix_never_lowers_utility(seed: int, related: list[Kind], given: list[int]) -> None:
    data = dataset(6, related)
    asked = SearchSettings(num_seed=1, seed=seed, alpha=1.5, fixed_alpha=True)
    search = Search(data, asked, Noise(seed))
    plain = Plain(data, asked, Noise(seed))
    labels = bytes(given)
    before = search.state.current
    while True:
        try:
            fixed = search._fix(labels, before, 1.5, draw(seed, 7, 10), forced=False)
            break
        except Unanswered as missing:
            search.answers.fill(missing.questions)
    assert search.utility(fixed, 1.5) >= plain.utility(labels, 1.5) - 1e-9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_a_proposal_is_accepted_if_it_gains_or_by_exp_of_delta_over_temperature(seed: int) -> None:
    asked = SearchSettings(iterations=60, num_seed=4, seed=seed, alpha=2, fixed_alpha=True)
    for step in Search(dataset(8), asked, Noise(seed)):
        likely = draw(seed, step.iteration, asked.fix_rounds).accept < math.exp(min(0, step.delta / step.temperature))
        assert step.accepted == (step.delta > 0 or likely)
        assert step.temperature == max(0.01, 10 / (1 + 0.99 * math.log(step.iteration)))


def test_a_gain_that_would_overflow_exp_is_accepted() -> None:
    asked = SearchSettings(
        iterations=50, num_seed=4, alpha=1e6, fixed_alpha=True, final_temperature=1e-6, initial_temperature=1e-6
    )
    assert any(step.delta > 1e4 and step.accepted for step in Search(dataset(8), asked, Noise(1)))


def test_how_often_each_labelling_is_visited_matches_the_enumerated_chain() -> None:
    size, temperature, alpha, count = 4, 1.0, 0.8, 10_000
    data = dataset(size, ["exclusion"])
    asked = SearchSettings(
        iterations=count, num_seed=size, alpha=alpha, fixed_alpha=True, beta=0, initial_temperature=temperature,
        fix_rounds=0,
    )  # fmt: skip
    plain = Plain(data, asked, Noise(4))
    all_labels = [bytes(labels) for labels in product((0, 1), repeat=size)]
    number = {labels: i for i, labels in enumerate(all_labels)}
    moves = np.zeros((len(all_labels), len(all_labels)))
    for labels in all_labels:
        for index in range(size):
            no, yes = plain.logprobs(labels, index)
            proposed = put(labels, (index, int(yes > no)))
            delta = plain.utility(proposed, alpha) - plain.utility(labels, alpha)
            chance = min(1.0, math.exp(delta / temperature)) / size
            moves[number[labels], number[proposed]] += chance
            moves[number[labels], number[labels]] += 1 / size - chance
    search = Search(data, asked, Noise(4))
    start = np.eye(len(all_labels))[number[search.state.current.labels]]
    expected = sum(start @ np.linalg.matrix_power(moves, power) for power in (10_000, 10_001)) / 2
    visits = Counter(search.state.current.labels for _ in search)
    seen = np.array([visits[labels] / count for labels in all_labels])
    assert np.count_nonzero(expected > 0.01) >= 3  # a chain that stands still would prove nothing
    assert np.abs(seen - expected).max() < 0.02


def test_an_iteration_is_one_call_even_with_contradictions() -> None:
    data = dataset(12, ["exclusion"] * 6, group=2)
    score = Noise(2, spread=0.3)
    steps = list(Search(data, SearchSettings(iterations=200, num_seed=4, alpha=1), score))
    scored = [step for step in steps if step.calls]
    assert len(scored) > 20
    assert sum(step.calls for step in scored) <= 1.1 * len(scored)
    assert sum(step.prompts for step in steps) == sum(score.sizes)


@pytest.mark.parametrize("variant", ["paper", "original"])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_iteration_is_one_call_on_the_bundled_reviews(variant: str, seed: int) -> None:
    data = load("reviews").sample(64, seed)
    gold = Gold.read(BUNDLED / "reviews.gold.jsonl").of(data)
    model = Planted(data, gold, known=0.65, pull=3.0, seed=seed)
    steps = list(Search(data, SearchSettings(iterations=384, variant=variant, seed=seed), model))
    scored = [step for step in steps if step.calls]
    assert len(scored) > 50
    assert sum(step.calls for step in scored) <= 1.1 * len(scored)


def test_a_labelling_that_was_scored_is_not_asked_again() -> None:
    asked: Counter[str] = Counter()

    class Counting(Noise):
        def logit(self, text: str) -> float:
            asked[text] += 1
            return super().logit(text)

    search = Search(
        dataset(6), SearchSettings(iterations=200, num_seed=6, alpha=50, final_temperature=0.01), Counting()
    )
    states = [search.state.accepted for _ in search]
    assert max(asked.values()) <= 1 + max(states)
    assert any(earlier == later for earlier, later in pairwise(states))


def test_a_failed_row_stops_the_search_and_names_the_example_and_a_second_try_goes_on_as_if_nothing_was() -> None:
    class Flaky(Noise):
        calls = 0

        def __call__(self, prompts):  # type: ignore[no-untyped-def]
            self.calls += 1
            if self.calls == 9:
                return [Failure("replica lost"), *super().__call__(prompts[1:])]
            return super().__call__(prompts)

    asked = SearchSettings(iterations=60, num_seed=4, alpha=2)
    whole = [step.without_costs() for step in Search(dataset(8), asked, Noise(4))]
    search = Search(dataset(8), asked, Flaky(4))
    steps: list[Step] = []
    with pytest.raises(ScoringFailed, match=r"example 'e\d' .*replica lost.*--resume"):
        steps.extend(search)
    steps += search
    assert [step.without_costs() for step in steps] == whole
