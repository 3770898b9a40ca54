from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.workloads.icm.evaluation.baselines import make_consistent
from serve_app.workloads.icm.examples.consistency import CONSISTENT, Constraints, Kind, Relation, relate
from serve_app.workloads.icm.examples.labels import NONE, differences, labelled, put, unlabelled, without
from tests.workloads.icm.models import dataset

KINDS: tuple[Kind, ...] = tuple(CONSISTENT)
label_lists = st.lists(st.sampled_from([0, 1, NONE]), min_size=6, max_size=6).map(bytes)
relations = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5))
    .filter(lambda one: one[1] != one[2])
    .map(lambda one: Relation(*one)),
    max_size=8,
    unique=True,
)


@settings(deadline=None)
@given(relations, label_lists, label_lists)
def test_inconsistent_pairs_counted_from_the_change_are_those_counted_anew(
    some: list[Relation], old: bytes, new: bytes
) -> None:
    constraints = Constraints(some, 6)
    changed = [index for index, _ in differences(old, new)]
    assert constraints.count_after(constraints.count(old), old, new, changed) == constraints.count(new)


def test_each_kind_of_relation_forbids_what_it_says() -> None:
    forbidden: dict[Kind, set[tuple[int, int]]] = {
        "contradiction": {(1, 1)},
        "exclusion": {(1, 1), (0, 0)},
        "implication": {(1, 0)},
        "equivalence": {(1, 0), (0, 1)},
    }
    for kind, pairs in forbidden.items():
        relation = Relation(kind, 0, 1)
        assert {(a, b) for a in (0, 1) for b in (0, 1) if relation.violated(bytes([a, b]))} == pairs
        assert not any(relation.violated(bytes([NONE, b])) for b in (0, 1))


def test_equal_claims_of_a_group_are_equivalent_and_others_contradict() -> None:
    found = relate([(3, "12"), (5, "12"), (6, "13"), (7, "")])
    assert found == [Relation("equivalence", 3, 5), Relation("contradiction", 3, 6), Relation("contradiction", 5, 6)]


def test_labels_are_changed_in_copies() -> None:
    labels = put(unlabelled(4), (1, 0), (3, 1))
    assert labelled(labels) == [1, 3]
    assert labelled(without(labels, 3)) == [1]
    assert differences(labels, put(labels, (0, 1))) == [(0, 1)]


def test_bootstrapping_gives_an_inconsistent_pair_its_most_probable_consistent_labels() -> None:
    data = dataset(4, ["exclusion", "contradiction"])
    sure, unsure = (-5.0, -0.01), (-0.9, -0.5)  # both say 1
    assert make_consistent(data, [unsure, sure, sure, unsure]) == bytes([0, 1, 1, 0])
