import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.levels import MAX_LEVELS, levels_of
from serve_app.workloads.ctr.statistics.segments import segments
from tests.workloads.ctr.made_up import results


def test_ages_are_cut_as_advertisers_cut_them() -> None:
    table = results([0.1] * 5, age=[18, 24, 25, 64, 80])
    counts = {level.name: int(level.mask.sum()) for level in levels_of(table, "age")}
    assert counts == {"18–24": 2, "25–34": 1, "35–44": 0, "45–54": 0, "55–64": 1, "65+": 1}


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=60))
def test_everybody_is_in_exactly_one_group_of_a_number(numbers: list[float | None]) -> None:
    groups = levels_of(results([0.1] * len(numbers), score=np.array(numbers, dtype=float)), "score")
    assert np.all(sum(group.mask.astype(int) for group in groups) == 1)


def test_salary_buckets_go_by_their_first_number_and_none_goes_last() -> None:
    table = results([0.1] * 4, annual_salary=["140-250k", None, "20-40k", "90-140k"])
    assert [level.name for level in levels_of(table, "annual_salary")] == ["20-40k", "90-140k", "140-250k", "(none)"]


def test_the_members_of_a_list_are_groups_that_overlap() -> None:
    table = results([0.1] * 3, interests=[["golf", "news"], ["news"], []])
    assert {level.name: int(level.mask.sum()) for level in levels_of(table, "interests")} == {
        "golf": 1,
        "news": 2,
        "(none)": 1,
    }


def test_names_and_free_text_are_no_segments() -> None:
    assert levels_of(results([0.1] * 50, name=[f"n{i}" for i in range(MAX_LEVELS + 10)]), "name") == []


def test_an_unknown_attribute_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(BadSettings, match="'agee'.*age"):
        segments(results([0.1], age=[30]), np.array([0.1]), attributes=["agee"])


def test_an_empty_segment_is_reported_as_empty() -> None:
    table = results([0.1, 0.2, float("nan")], region=["A", "A", "B"])
    found = {
        s.level: s
        for s in segments(table, np.array([0.1, 0.2, np.nan]), attributes=["region"], known={"region": ["A", "B", "C"]})
    }
    assert (found["C"].people, found["C"].estimate.rows, found["C"].estimate.mean) == (0, 0, None)
    assert (found["B"].people, found["B"].estimate.rows) == (1, 0)
    assert found["B"].q_value is None
    assert not found["B"].differs


def test_a_segment_is_tested_against_the_rest_by_students_t() -> None:
    rng = np.random.default_rng(1)
    group = np.repeat(["a", "b"], [40, 160])
    values = rng.beta(1, 5, 200) + 0.05 * (group == "a")
    found = segments(results(values, group=group), values)[0]
    reference = stats.ttest_ind(values[group == "a"], values[group == "b"], equal_var=True)
    assert found.p_value == pytest.approx(reference.pvalue)


def test_adjusted_p_values_are_benjamini_and_hochbergs() -> None:
    rng = np.random.default_rng(2)
    attributes = {f"a{i}": rng.choice(["x", "y", "z"], 300) for i in range(8)}
    values = rng.random(300)
    found = segments(results(values, **attributes), values)
    p_values = np.array([s.p_value for s in found], dtype=float)
    order = np.sort(p_values)[::-1] * len(p_values) / np.arange(len(p_values), 0, -1)
    expected = np.minimum.accumulate(np.minimum(order, 1))
    assert sorted((s.q_value or 0 for s in found), reverse=True) == pytest.approx(expected)


def test_where_no_segment_differs_one_is_called_different_in_at_most_5_of_100_populations() -> None:
    # 500 populations; a true 5 % exceeds 35 (7 %) with probability 0.02, and the tests' dependence makes it rarer.
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(500):
        values = rng.beta(2, 8, 200)
        table = results(values, city=rng.choice(list("ABCDEFGHIJ"), 200), sex=rng.choice(["m", "f"], 200))
        wrong += any(s.differs for s in segments(table, values))
    assert wrong <= 35


def test_a_planted_segment_is_found() -> None:
    rng = np.random.default_rng(4)
    city = rng.choice(list("ABCDEFGHIJ"), 1000)
    values = rng.beta(2, 8, 1000) + 0.1 * (city == "D")
    found = segments(results(values, city=city), values)
    assert max(found, key=lambda s: s.versus_rest or 0).level == "D"
    assert {s.level for s in found if s.differs} >= {"D"}


def test_shrinking_brings_small_groups_nearer_to_their_truth() -> None:
    rng = np.random.default_rng(5)
    raw, shrunk = [], []
    for _ in range(200):
        truth = 0.2 + rng.normal(0, 0.01, 8)
        group = rng.integers(0, 8, 160)
        values = truth[group] + rng.normal(0, 0.1, 160)
        for s in segments(results(values, group=[f"g{i}" for i in group]), values):
            if s.estimate.mean is not None and s.shrunk is not None:
                raw.append((s.estimate.mean - truth[int(s.level[1:])]) ** 2)
                shrunk.append((s.shrunk - truth[int(s.level[1:])]) ** 2)
    assert np.mean(shrunk) < 0.5 * np.mean(raw)
