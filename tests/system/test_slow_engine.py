"""A real engine at a hundredth of its speed: steps become short, nobody is killed, the job completes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from serve_app.client.populations import PopulationClient
from serve_app.schema import Row
from serve_app.serving.launch.local import local_serve
from serve_app.spec import JobSpec
from tests.conftest import ROOT, own_document

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
# Shorter than a step of this engine, so that only the use of the processor can tell that it lives.
STALL_S = 1.0


def test_an_engine_slowed_by_a_hundred_completes_its_job_and_its_replica_is_not_killed(tmp_path: Path) -> None:
    document = own_document(tmp_path)
    replicas = document["applications"][0]
    replicas["args"]["engine"]["worker_cls"] = "tests.system.slow_worker.SlowWorker"
    replicas["args"]["health"] = {"stall_timeout_s": STALL_S}
    replicas["deployments"][0] |= {"num_replicas": 1, "health_check_period_s": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    log = tmp_path / "serve.log"
    with local_serve(tmp_path / "config.yaml", log=log, on_wait=print, env={"PYTHONPATH": str(ROOT)}) as base_url:
        client = PopulationClient(base_url)
        (before,) = client.replicas()
        rows = [Row(f"row-{i}", prompt=f"The capital of country number {i} is the city") for i in range(4)]
        job_id = client.submit(JobSpec.of(rows, workload="capitals/v1", max_tokens=1))
        status = client.wait(job_id)
        assert (status.state, status.ok, status.failed) == ("completed", 4, 0)
        outcomes = list(client.outcomes(job_id))
        print(f"the slowest row took {max(outcome.latency_ms for outcome in outcomes) / 1000:.0f} s")
        assert max(outcome.latency_ms for outcome in outcomes) > 3 * STALL_S * 1000
        assert {outcome.attempts for outcome in outcomes} == {1}
        (after,) = client.replicas()
        assert after.replica_id == before.replica_id
    assert "it hangs" not in log.read_text(errors="replace")
