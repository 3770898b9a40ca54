"""Numbers as countries write them, decided by whole columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.tables.numbers import plain_numbers


def rewritten(delimiter: str, **columns: list[str]) -> dict[str, list[str]]:
    rewrites = plain_numbers(columns, delimiter)
    return {name: [rewrites[name](cell) for cell in cells] for name, cells in columns.items() if name in rewrites}


@pytest.mark.parametrize(
    ("delimiter", "cells", "plain"),
    [
        (";", ["1,5", "2"], ["1.5", "2"]),
        (";", ["-0,125", "3"], ["-0.125", "3"]),
        (";", ["2.345,50", "12,00"], ["2345.50", "12.00"]),
        (";", ["1.234.567", "12"], ["1234567", "12"]),
        (";", ["45\u202f000", "5"], ["45000", "5"]),
        (";", ["1\u00a0234,50"], ["1234.50"]),
        (";", ["45'000", "1'234'567"], ["45000", "1234567"]),
        (";", ["1,234,567", "5"], ["1234567", "5"]),
        (";", ["1,234.50"], ["1234.50"]),
        (",", ["1,234", "5"], ["1234", "5"]),
        ("", ["3,25"], ["3.25"]),
    ],
)
def test_a_column_that_is_numbers_of_one_kind_becomes_plain(delimiter: str, cells: list[str], plain: list[str]) -> None:
    assert rewritten(delimiter, a=cells) == {"a": plain}


@pytest.mark.parametrize(
    ("delimiter", "cells"),
    [
        (";", ["1,234", "5,678"]),  # thousands or decimals
        (";", ["45.000", "1.000"]),
        (",", ["1,5"]),  # the comma is the delimiter
        (";", ["1,5", "a lot"]),
        (";", ["1.5", "2,5"]),
        (";", ["01.02.2024", "31.12.2023"]),
        (";", ["030 123 456"]),
        (";", ["01234,5"]),
        (";", ["1.5", "2"]),
        (";", []),
    ],
)
def test_what_may_be_something_else_stays_text(delimiter: str, cells: list[str]) -> None:
    assert rewritten(delimiter, a=cells) == {}


def test_one_column_with_decimal_commas_for_certain_tells_the_others() -> None:
    assert rewritten(";", sure=["0,5"], a=["1,234", "5"], b=["45.000"], c=["x,y"]) == {
        "sure": ["0.5"],
        "a": ["1.234", "5"],
        "b": ["45000"],
    }


@given(st.lists(st.decimals(-9_999_999, 9_999_999, places=2), min_size=1), st.sampled_from(".\u00a0\u202f'"))
def test_any_numbers_come_back_from_german_french_and_swiss(values: list[object], thousands: str) -> None:
    cells = [f"{value:,.2f}".replace(",", "\0").replace(".", ",").replace("\0", thousands) for value in values]
    assert rewritten(";", a=cells) == {"a": [f"{value:.2f}" for value in values]}
