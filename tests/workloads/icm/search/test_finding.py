import pytest

from serve_app.workloads.icm.evaluation import baselines
from serve_app.workloads.icm.evaluation.gold import Accuracy, Gold, accuracy, over_seeds
from serve_app.workloads.icm.examples.testbeds import BUNDLED, load
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.scoring.protocol import Scorer, Usage
from serve_app.workloads.icm.search.finding import Finding, conclude
from serve_app.workloads.icm.search.search import Search
from tests.workloads.icm.models import Noise, Planted

DATA = load("reviews").sample(64, seed=0)
GOLD = Gold.read(BUNDLED / "reviews.gold.jsonl").of(DATA)


def found(score: Scorer, variant: str, seed: int) -> Finding:
    search = Search(DATA, SearchSettings(iterations=300, variant=variant, seed=seed, speculate=4), score)
    list(search)
    return conclude(search)


def labels(finding: Finding) -> bytes:
    return bytes(label.label for label in finding.labels)


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_planted_truths_are_recovered_from_a_model_that_knows_65_of_100(variant: str) -> None:
    for seed in range(4):
        model = Planted(DATA, GOLD, known=0.65, pull=3.0, seed=seed)
        assert accuracy(baselines.zero_shot(DATA, model), GOLD).mean == pytest.approx(0.65, abs=0.02)
        finding = found(model, variant, seed)
        assert accuracy(labels(finding), GOLD).mean >= 0.9
        assert finding.coherent


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_of_an_incoherent_model_nothing_is_pretended(variant: str) -> None:
    finding = found(Noise(7), variant, 0)
    assert accuracy(labels(finding), GOLD).mean < 0.75
    assert finding.low < 0.75
    assert not finding.coherent


def test_every_example_has_a_label_and_those_not_searched_say_so() -> None:
    search = Search(DATA, SearchSettings(iterations=5), Planted(DATA, GOLD, known=0.65, pull=3.0, seed=0))
    list(search)
    finding = conclude(search)
    assert [label.id for label in finding.labels] == [example.id for example in DATA.examples]
    assert 0 < sum(label.searched for label in finding.labels) < len(DATA)
    assert {label.word for label in finding.labels} <= {"negative", "positive"}
    assert all(label.probability >= 0.5 for label in finding.labels if not label.searched)


def test_baselines_take_one_call_a_round_and_see_gold_only_where_it_is_given() -> None:
    model, usage = Planted(DATA, GOLD, known=0.65, pull=3.0, seed=0), Usage()
    shots = {"shots": 8, "seed": 1}
    gold = accuracy(baselines.gold_few_shot(DATA, model, GOLD, **shots, usage=usage), GOLD).mean
    assert usage.calls == 1
    random = accuracy(baselines.random_few_shot(DATA, model, **shots, usage=usage), GOLD).mean
    assert usage.calls == 2
    assert gold > random
    bootstrapped = accuracy(baselines.bootstrapped_few_shot(DATA, model, **shots, usage=usage), GOLD).mean
    assert usage.calls == 2 + 1 + baselines.ROUNDS
    assert bootstrapped > random
    baselines.chat(DATA, model, usage=usage)
    assert usage.prompts == 7 * len(DATA)


def test_intervals_are_wilsons_over_examples_and_students_t_over_seeds() -> None:
    one = accuracy(bytes([1, 1, 0, 2]), bytes([1, 0, 0, 1]))
    assert one.mean == pytest.approx(2 / 3)
    assert one.examples == 3
    # Wilson: (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.96
    assert one.low == pytest.approx(0.2077, abs=1e-3)
    assert one.high == pytest.approx(0.9385, abs=1e-3)
    several = over_seeds([Accuracy(mean, 0, 1, 10) for mean in (0.7, 0.8, 0.9)])
    assert several.mean == pytest.approx(0.8)
    assert several.mean - several.low == pytest.approx(4.303 * 0.1 / 3**0.5, abs=1e-3)
    assert several.high == 1.0  # no share is above
    assert several.seeds == 3
    assert over_seeds([one]) == one
