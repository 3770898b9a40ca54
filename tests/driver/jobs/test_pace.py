import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.driver.jobs.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_said_before_the_second_commit() -> None:
    clock = Clock()
    pace = Pace(100, clock)
    assert pace.eta_s(900) is None
    clock.now += 5
    pace.observe(100)  # no commit: the rows of a former run
    pace.observe(110)
    assert pace.eta_s(890) is None


@given(rate=st.floats(0.5, 5000), start_s=st.floats(0, 600), every_s=st.floats(0.2, 20), former=st.integers(0, 10**6))
def test_after_a_tenth_of_the_job_the_time_left_is_within_30_percent_however_long_the_start_took(
    rate: float, start_s: float, every_s: float, former: int
) -> None:
    rows = max(1000, int(rate * every_s * 60))  # some commits in a tenth
    clock = Clock()
    pace = Pace(former, clock)
    clock.now += start_s
    worked_s, done = 0.0, 0
    while done < rows / 10 or pace.eta_s(rows - done) is None:
        worked_s += every_s
        clock.now += every_s
        done = int(worked_s * rate)
        pace.observe(former + done)
    assert pace.eta_s(rows - done) == pytest.approx((rows - done) / rate, rel=0.3)


def test_a_replica_more_is_seen_in_the_time_left() -> None:
    clock = Clock()
    pace = Pace(0, clock)
    for second in range(1, 301):
        clock.now += 1
        pace.observe(10 * min(second, 150) + 20 * max(0, second - 150))
    assert pace.eta_s(2000) == pytest.approx(100, rel=0.05)


def test_time_passes_between_commits_and_a_stall_makes_the_rest_longer() -> None:
    clock = Clock()
    pace = Pace(0, clock)
    for done in (10, 20, 30):
        clock.now += 10
        pace.observe(done)
    clock.now += 5
    assert pace.eta_s(70) == pytest.approx(65)
    clock.now += 600
    assert (pace.eta_s(70) or 0) > 1000
