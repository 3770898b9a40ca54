"""Draws, α and variants."""

import math
from collections import Counter
from itertools import pairwise

import pytest

from serve_app.errors import BadSettings
from serve_app.workloads.icm.examples.labels import NONE
from serve_app.workloads.icm.schedule import SearchSettings, draw
from serve_app.workloads.icm.scoring.prompts import question
from serve_app.workloads.icm.search.search import Search
from serve_app.workloads.icm.variants import variant_of
from tests.workloads.icm.models import Noise, dataset
from tests.workloads.icm.search.kit import run


def test_unlabelled_examples_of_a_begun_group_are_drawn_a_hundred_times_as_often() -> None:
    data = dataset(6, group=2)
    search = Search(data, SearchSettings(num_seed=1), Noise())
    labels = bytes([1, NONE, NONE, NONE, NONE, NONE])
    drawn = Counter(search._sample(labels, draw(0, iteration, 0)) for iteration in range(4000))
    assert drawn[1] / 4000 == pytest.approx(100 / 105, abs=0.015)
    assert set(drawn) == set(range(6))


def test_alpha_is_lowered_when_most_proposals_are_rejected_and_only_then() -> None:
    asked = SearchSettings(iterations=400, num_seed=6, final_temperature=0.01)
    steps = list(Search(dataset(6), asked, Noise(3)))
    levels = [step.alpha for step in steps]
    assert levels == sorted(levels, reverse=True)
    assert list(dict.fromkeys(levels)) == [50, 30, 20, 10, 5, 2]
    for before, after in pairwise(range(len(steps))):
        under_this = [step.accepted for step in steps[:after] if step.changes and step.alpha == levels[before]]
        lowered = levels[after] < levels[before]
        assert lowered == (levels[before] > 2 and len(under_this) >= 10 and not any(under_this[-10:]))
    fixed = asked.model_copy(update={"fixed_alpha": True})
    assert {step.alpha for step in Search(dataset(6), fixed, Noise(3))} == {50}


def test_the_original_codes_variant_has_its_own_objective_and_temperature() -> None:
    asked = SearchSettings(variant="original", iterations=60, num_seed=4)
    _, states = run(dataset(6), asked, Noise(1))
    accepted = 0
    for state, step in states:
        assert step.temperature == pytest.approx(max(0.01, 10 / (1 + 2 * math.log(1 + accepted))))
        accepted = state.accepted
    assert asked.alphas == (30.0,)


def test_predictability_is_the_papers_sum_or_the_codes_mean_margin_with_epsilon() -> None:
    labels, logprobs = (1, 0), ((math.log(0.2), math.log(0.8)), (-math.inf, math.log(0.5)))
    right, other, hopeless, half = (math.log(p + 1e-5) for p in (0.8, 0.2, 0.0, 0.5))
    assert variant_of("paper").predictability(labels, logprobs) == pytest.approx(right + hopeless)
    margin = ((right - other) + (hopeless - half)) / 2
    assert variant_of("original").predictability(labels, logprobs) == pytest.approx(margin)
    assert [variant_of(name).predictability((), ()) for name in ("paper", "original")] == [0, 0]


def test_more_seeds_than_examples_and_an_unknown_variant_are_refused() -> None:
    with pytest.raises(BadSettings, match=r"--num-seed 9 is more than the 4"):
        Search(dataset(4), SearchSettings(num_seed=9), Noise())
    with pytest.raises(BadSettings, match="--variant 'mine' is unknown"):
        _ = SearchSettings(variant="mine").alphas


def test_what_is_remembered_does_not_grow_with_the_chain() -> None:
    search = Search(dataset(8), SearchSettings(iterations=300, num_seed=4, alpha=1), Noise(2))
    for step in search:
        if step.accepted and step.changes:
            assert len(search.answers.known) <= 8
    assert question(search.state.current.labels, 0) in search.answers.known
