"""Rows that have an earlier row's id."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from serve_app.driver.sources.repeats import Repeat, find_repeats


@given(ids=st.lists(st.text("ab", max_size=3), max_size=12))
def test_every_row_that_repeats_an_id_is_told_with_the_first_that_has_it(ids: list[str]) -> None:
    rows, repeats = find_repeats(lambda: ids)
    assert rows == len(ids)
    expected = [Repeat(row, ids.index(one), one) for row, one in enumerate(ids) if one in ids[:row]]
    assert list(repeats) == expected


class Alike(str):
    """An id whose hash is every other's."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 1


def test_ids_of_one_hash_are_compared_by_themselves() -> None:
    ids = [Alike(text) for text in "abca"]
    rows, repeats = find_repeats(lambda: ids)
    assert (rows, list(repeats)) == (4, [Repeat(3, 0, "a")])


def test_a_second_pass_is_made_only_where_two_hashes_are_equal() -> None:
    passes = 0

    def ids() -> Iterator[str]:
        nonlocal passes
        passes += 1
        yield from ("a", "b", "c")

    assert list(find_repeats(ids)[1]) == []
    assert passes == 1
