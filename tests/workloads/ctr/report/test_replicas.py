import pytest

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.report.replicas import replica_work, speedup
from tests.workloads.ctr.made_up import results


def test_rows_and_time_are_counted_by_replica_without_failed_rows() -> None:
    first, second = replica_work(results([0.1, 0.2, 0.3, float("nan")]))
    assert (first.replica, first.rows) == ("replica-0", 2)
    # Finished at :10 and :30 after 1 s each.
    assert first.busy_s == pytest.approx(21)
    assert first.rows_per_s == pytest.approx(2 / 21)
    assert (second.replica, second.rows) == ("replica-1", 1)


def test_without_one_replicas_run_the_speed_up_is_said_to_be_modelled() -> None:
    work = replica_work(results([0.1] * 4))
    found = speedup(work, 40.0)
    assert found is not None
    assert found.kind == "modelled"
    assert found.factor == pytest.approx((21 + 21) / 40)


def test_against_one_replicas_run_it_is_measured() -> None:
    found = speedup(replica_work(results([0.1] * 4)), 10.0, {"replicas": 1, "ok": 4, "run_s": 18.0})
    assert found is not None
    assert found.kind == "measured"
    assert found.factor == pytest.approx(1.8)


@pytest.mark.parametrize("other", [{"replicas": 2, "ok": 4, "run_s": 1.0}, {"replicas": 1, "ok": 5, "run_s": 1.0}])
def test_a_run_of_other_work_is_nothing_to_measure_against(other: dict[str, float]) -> None:
    with pytest.raises(BadSettings, match="one replica's run of the same 4 rows"):
        speedup(replica_work(results([0.1] * 4)), 10.0, other)


def test_a_run_without_answers_has_no_speed_up() -> None:
    assert speedup(replica_work(results([float("nan")])), 10.0) is None
