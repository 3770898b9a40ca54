from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.driver.jobs import plan as rules
from serve_app.settings import DriverSettings

DRIVER = DriverSettings()
LOW, HIGH = DRIVER.min_rows_per_replica, DRIVER.max_rows_per_replica
make_plan = partial(rules.make_plan, min_rows=LOW, max_rows=HIGH)
replicas_wanted = partial(rules.replicas_wanted, min_rows=LOW, max_rows=HIGH)
SIZES = st.integers(1, 10_000_000)
REPLICAS = st.integers(1, 500)


@given(SIZES, REPLICAS)
def test_wanted_replicas_are_the_original_rule(rows: int, available: int) -> None:
    if rows / available < 4096:
        fitting = [n for n in range(1, available + 1) if rows / n >= 128]
        expected = max(fitting, default=1)
    else:
        expected = available + max(0, -(-rows // 4096) - available)
    assert replicas_wanted(rows, available) == expected


@given(SIZES, REPLICAS)
def test_a_plan_never_uses_replicas_that_are_not_there(rows: int, available: int) -> None:
    plan = make_plan(rows, available)
    assert 1 <= plan.chosen <= available
    assert plan.rows_per_replica * plan.chosen >= rows


@pytest.mark.parametrize(
    ("rows", "available", "wanted"),
    [(1, 2, 1), (127, 2, 1), (255, 2, 1), (256, 2, 2), (1000, 2, 2), (1000, 8, 7), (50_000, 3, 13)],
)
def test_examples(rows: int, available: int, wanted: int) -> None:
    assert replicas_wanted(rows, available) == wanted


def test_no_replica_means_no_rows_per_replica() -> None:
    assert make_plan(100, 0).rows_per_replica == 0


@pytest.mark.parametrize(("rows", "low", "high"), [(0, 128, 4096), (5, 0, 4096), (5, 10, 9)])
def test_sizes_that_make_no_sense_are_refused(rows: int, low: int, high: int) -> None:
    with pytest.raises(ValueError, match="must be positive and in order"):
        replicas_wanted(rows, 1, min_rows=low, max_rows=high)
