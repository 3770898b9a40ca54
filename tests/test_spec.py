"""What a job costs, and how jobs belong together."""

import pytest

from serve_app.spec import JobStatus, Price


def test_cost_is_hours_times_replicas_times_price_and_tokens() -> None:
    own = Price(replica_hour=3.0)
    assert own.cost(replica_s=2 * 1800, prompt_tokens=10**6, completion_tokens=10**6) == pytest.approx(3.0)
    external = Price(input_per_million_tokens=0.15, output_per_million_tokens=0.6)
    assert external.cost(replica_s=0, prompt_tokens=2 * 10**6, completion_tokens=10**6) == pytest.approx(0.9)


@pytest.mark.parametrize("price", [Price(), Price(replica_hour=3.0)])
def test_what_has_no_price_costs_nothing_that_is_known(price: Price) -> None:
    assert price.cost(replica_s=0, prompt_tokens=1000, completion_tokens=1000) is None


def test_a_group_is_a_text_of_the_metadata() -> None:
    def job(metadata: dict[str, object]) -> JobStatus:
        return JobStatus.model_validate({"id": "a", "state": "running", "metadata": metadata})

    assert [job({"group": "g"}).group, job({}).group, job({"group": 3}).group] == ["g", "", ""]
