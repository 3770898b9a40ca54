"""Replicas of a real Serve follow a wish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ReplicaState

from serve_app.driver.demand import Demand, put_in_kv
from tests.serving.kit import KEY

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
def test_replicas_of_a_real_serve_follow_a_wish_from_0_to_2_to_what_fits_and_back_to_0_when_it_is_not_renewed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.test_autoscaling_real"],
        cwd=ROOT,
        # So that Serve says within seconds, instead of after 30 s, that it cannot place a replica.
        env={**os.environ, "RAY_SERVE_SLOW_STARTUP_WARNING_S": "2", "RAY_SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "1"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "idle": 0,
        "wish of a dead driver": 0,
        "wished 2": 2,
        "wished 3 of 2": "wanted 3, running 2, cluster cannot place 1 more now: each needs {CPU: 1}, free {}",
        "not renewed": 0,
    }


def follow_a_wish() -> dict[str, Any]:
    """Start Ray with room for two replicas, wish, and return what came of it. In a process of its own."""
    import asyncio
    import tempfile

    import ray
    from ray import serve

    @serve.deployment(
        name="Replica",
        ray_actor_options={"num_cpus": 1},
        autoscaling_config={
            "min_replicas": 0,
            "max_replicas": 8,
            "downscale_delay_s": 1,
            "upscale_delay_s": 0,
            "policy": {
                "policy_function": "serve_app.serving.autoscaling:BacklogPolicy",
                "policy_kwargs": {"poll_s": 0.2, "expires_s": 3},
            },
        },
    )
    class Replica:
        pass

    def running() -> int:
        states = serve.status().applications["replicas"].deployments["Replica"].replica_states
        return int(states.get(ReplicaState.RUNNING, 0))

    def come_to(replicas: int, demand: Demand | None = None) -> int:
        deadline = time.monotonic() + 45
        while (now := running()) != replicas and time.monotonic() < deadline:
            if demand is not None:
                demand.set(replicas)
            time.sleep(0.3)
        return now

    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            demand = Demand()
            put_in_kv(KEY, "5 0")
            serve.start(proxy_location="Disabled")
            serve.run(Replica.bind(), name="replicas", route_prefix=None)  # type: ignore[attr-defined]
            seen: dict[str, Any] = {"idle": running()}
            time.sleep(1.5)
            seen["wish of a dead driver"] = running()
            seen["wished 2"] = come_to(2, demand)
            demand.set(3)
            deadline = time.monotonic() + 30
            while "place" not in (told := asyncio.run(demand.waiting_reason())) and time.monotonic() < deadline:
                demand.set(3)
                time.sleep(0.3)
            seen["wished 3 of 2"] = told
            seen["not renewed"] = come_to(0)
            return seen
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    print(json.dumps(follow_a_wish()))
