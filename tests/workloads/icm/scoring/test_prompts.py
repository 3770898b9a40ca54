import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.workloads.icm.examples.labels import NONE, put
from serve_app.workloads.icm.scoring.prompts import Prompts, question
from serve_app.workloads.icm.scoring.sharing import PrefixCache, cold_bound
from tests.workloads.icm.models import dataset


def leave_one_out(prompts: Prompts, labels: bytes) -> list[list[int]]:
    """One token a demonstration and query: its label and place, or its place."""
    tokens = []
    for index in range(len(labels)):
        shown = [2 * i + labels[i] for i in prompts.order(question(labels, index).given, index)]
        tokens.append([*shown, 10_000 + index])
    return tokens


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1, NONE]), min_size=5, max_size=20).map(bytes), st.data())
def test_a_prompt_shows_every_other_label_once_and_ends_before_its_own(labels: bytes, data: st.DataObject) -> None:
    some = dataset(len(labels))
    index = data.draw(st.integers(0, len(labels) - 1))
    prompt = Prompts(some, seed=3).render(question(labels, index))
    first, *shown, last = prompt.text.split("\n\n")
    others = [i for i in range(len(labels)) if i != index and labels[i] != NONE]
    assert sorted(shown) == sorted(f"{some.examples[i].text}{some.words[labels[i]]}" for i in others)
    assert (first, last) == (some.instruction, some.examples[index].text)
    assert not prompt.text.endswith(" ")


def test_the_order_reaches_its_bound_in_a_cold_cache_and_a_fixed_order_shares_half() -> None:
    size = 256
    prompts = Prompts(dataset(size), seed=1)
    labels = bytes(index % 2 for index in range(size))
    tokens = leave_one_out(prompts, labels)
    found = PrefixCache(block_size=1).add(tokens)
    assert found.tokens == size * size
    assert found.share == pytest.approx(cold_bound(size))
    assert found.share == pytest.approx(1 - (math.log2(size) + 1) / size)
    fixed = [[token for token in range(size) if token != index] + [10_000 + index] for index in range(size)]
    assert PrefixCache(block_size=1).add(fixed).share == pytest.approx(0.5, abs=0.01)


def test_after_one_relabel_as_much_is_shared_as_computed() -> None:
    size = 64
    prompts = Prompts(dataset(size), seed=1)
    labels = bytes(index % 2 for index in range(size))
    warm = []
    for changed in range(0, size, 2):
        cache = PrefixCache(block_size=1)
        cache.add(leave_one_out(prompts, labels))
        warm.append(cache.add(leave_one_out(prompts, put(labels, (changed, 1 - labels[changed])))).share)
    # Σ_l 2^l·(l + 1 + 1/2) of N² computed; a query that was asked before is computed again, its last token.
    expected = 1 - (sum(2**level * (level + 1.5) for level in range(6)) + 1) / size**2
    assert sum(warm) / len(warm) == pytest.approx(expected, abs=0.002)
    # The module's figure for 256.
    assert 1 - sum(2**level * (level + 1.5) for level in range(8)) / 256**2 == pytest.approx(0.971, abs=0.001)


def test_the_cache_counts_whole_blocks_and_leaves_a_token_to_compute() -> None:
    cache = PrefixCache(block_size=4)
    assert cache.add([list(range(8))]).cached == 0
    assert cache.add([list(range(8))]).cached == 4  # the second block would leave nothing
    assert cache.add([[*range(8), 9]]).cached == 8
    assert cache.add([[*range(3), 9, *range(4, 9)]]).cached == 0


def test_the_order_depends_on_the_seed_and_not_on_how_the_labels_came_about() -> None:
    labels = bytes([1, 0, NONE, 1, 0, 1])
    orders = {tuple(Prompts(dataset(6), seed).order(labels, 2)) for seed in range(20)}
    assert len(orders) > 5
    assert Prompts(dataset(6), 4).order(labels, 2) == Prompts(dataset(6), 4).order(labels, 2)


def test_a_chats_prompt_names_both_words_and_answers_begin_without_a_space() -> None:
    prompt = Prompts(dataset(2), 0).chat(1)
    assert prompt.chat
    assert prompt.words == ("no", "yes")
    assert "example 1 is" in prompt.text
    assert prompt.text.endswith("Answer with one word, yes or no.")
