"""The replicas follow the driver's backlog: the policy, the wish and its end, and what is said while waiting."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve import autoscaling_policy as serve_policies
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, DeploymentStatusTrigger, ReplicaState

from serve_app.driver.demand import KV_NAMESPACE, explain
from serve_app.serving import autoscaling
from serve_app.serving.autoscaling import BacklogPolicy
from tests.serving.kit import KEY, counts, requests

# --- the policy inside Serve ---


class Deployment:
    """Serve's own wrapper around the policy (delays, factors, cold start), on a clock and with wishes of ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
        self.now = 0.0
        self.target = self.running = 0
        self.requests = 0.0
        self.config = AutoscalingConfig(
            **{"min_replicas": 0, "max_replicas": 8, "target_ongoing_requests": 64, **config}
        )
        self._state: dict[str, Any] = {}
        monkeypatch.setattr(serve_policies, "time", SimpleNamespace(time=lambda: self.now))
        monkeypatch.setattr(BacklogPolicy, "_start_reader", lambda policy, key: None)
        self.policy = BacklogPolicy()
        self._decide = serve_policies._apply_autoscaling_config(self.policy)

    def step(self) -> int:
        """One decision of Serve's, a second after the last; replicas start and stop at once."""
        self.now += 1
        decided, self._state = self._decide(self._context())
        self.target = self.running = max(self.config.min_replicas, min(self.config.max_replicas, decided))
        return self.target

    def wish(self, replicas: int) -> None:
        """The driver wishes, and the policy's thread sees it."""
        self.policy._driver_demand.update(None)
        self.policy._driver_demand.update(b"%d 0" % replicas)

    def _context(self) -> AutoscalingContext:
        return context(self.running, self.target, self.requests, self.config, self._state, self.now)


def context(
    running: int, target: int, requests: float, config: AutoscalingConfig, state: dict[str, Any], now: float
) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=None, deployment_name="Replica", app_name="replicas",
        current_num_replicas=running, target_num_replicas=target, running_replicas=[],
        total_num_requests=requests, total_queued_requests=0.0, aggregated_metrics=None, raw_metrics=None,
        capacity_adjusted_min_replicas=config.min_replicas, capacity_adjusted_max_replicas=config.max_replicas,
        policy_state=state, last_scale_up_time=None, last_scale_down_time=None, current_time=now, config=config,
    )  # fmt: skip


def test_a_wish_starts_replicas_from_zero_without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(monkeypatch, upscale_delay_s=1000)
    assert deployment.step() == 0
    deployment.wish(4)
    assert deployment.step() == 4


def test_a_larger_wish_waits_for_the_upscale_delay_while_replicas_run(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(monkeypatch, upscale_delay_s=3)
    deployment.wish(1)
    deployment.step()
    deployment.wish(4)
    assert [deployment.step() for _ in range(4)] == [1, 1, 1, 4]


def test_no_replica_stops_before_the_wish_was_away_for_the_downscale_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(monkeypatch, downscale_delay_s=10)
    deployment.wish(4)
    assert deployment.step() == 4
    deployment.wish(0)
    assert [deployment.step() for _ in range(10)] == [4] * 10
    deployment.wish(4)  # the next job came in time
    assert deployment.step() == 4
    deployment.wish(0)
    # The delay begins with the first of these; from 1 to 0 there is another.
    assert [deployment.step() for _ in range(22)] == [4] * 10 + [1] * 11 + [0]


def test_online_demand_keeps_the_replicas_that_no_job_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(monkeypatch, upscale_delay_s=0, downscale_delay_s=0)
    deployment.requests = 65
    assert deployment.step() == 1  # Serve starts one for the first request, without asking
    assert deployment.step() == 2
    deployment.wish(1)
    assert deployment.step() == 2


def test_an_online_request_at_zero_replicas_does_not_lower_a_wish_that_came_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployment = Deployment(monkeypatch)
    deployment.wish(4)
    deployment.step()
    deployment.running, deployment.requests = 0, 1  # none of the four is ready yet
    assert deployment.step() == 4


@given(requests, counts, counts, st.integers(0, 64), st.integers(0, 64))
def test_the_policy_answers_with_a_number_whatever_serve_and_the_driver_say(
    requests: float, wish: int, upper: int, running: int, target: int
) -> None:
    config = AutoscalingConfig(min_replicas=0, max_replicas=upper + 1)
    policy = BacklogPolicy()
    policy._reader = threading.current_thread()  # no other
    policy._driver_demand.update(None)
    policy._driver_demand.update(b"%d 0" % wish)
    replicas, state = policy(context(running, target, requests, config, {}, 0.0))
    assert 0 <= replicas <= upper + 1
    assert state == {}


# --- the policy's thread ---


def watching(monkeypatch: pytest.MonkeyPatch, get: Callable[..., bytes | None]) -> BacklogPolicy:
    """A policy that was asked once, and now reads by `get`."""
    monkeypatch.setattr(autoscaling, "_internal_kv_get", get)
    policy = BacklogPolicy(poll_s=0.005)
    policy(context(0, 0, 0.0, AutoscalingConfig(), {}, 0.0))
    return policy


def test_the_thread_reads_the_wish_for_the_policy_s_own_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    asked = set()

    def get(key: str, *, namespace: bytes) -> bytes:
        asked.add((key, namespace))
        return b"1 %d" % next(looks)

    policy = watching(monkeypatch, get)
    eventually(lambda: policy._driver_demand.replicas() == 1)
    assert asked == {(KEY, KV_NAMESPACE)}


def test_the_thread_ends_with_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = watching(monkeypatch, lambda key, namespace: None)
    reader = policy._reader
    assert reader is not None
    assert reader.is_alive()
    del policy
    reader.join(5)
    assert not reader.is_alive()


def test_the_thread_outlives_a_store_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()

    def get(key: str, *, namespace: bytes) -> bytes:
        if (look := next(looks)) < 3:
            raise RuntimeError("GCS is away")
        return b"2 %d" % look

    policy = watching(monkeypatch, get)
    eventually(lambda: policy._driver_demand.replicas() == 2)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_policy_loads_where_serve_app_is_not_installed(tmp_path: Path) -> None:
    pickled = tmp_path / "policy"
    policy = AutoscalingPolicy(policy_function="serve_app.serving.autoscaling:BacklogPolicy")
    pickled.write_bytes(policy.get_serialized_policy_def() or b"")
    code = """
import pathlib, sys
sys.modules["serve_app"] = None  # importing it fails
from ray import cloudpickle
policy = cloudpickle.loads(pathlib.Path(sys.argv[1]).read_bytes())(expires_s=30.0)
print(policy._driver_demand.replicas(), sorted({"torch", "vllm", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, pickled], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0 []", done.stderr


# --- what is said while waiting ---


def status(message: str = "", state: str = "UPSCALING", **states: int) -> DeploymentStatusOverview:
    replica_states = {ReplicaState(name): count for name, count in states.items()}
    return DeploymentStatusOverview(
        DeploymentStatus(state), DeploymentStatusTrigger.AUTOSCALING, replica_states, message
    )


# As Ray 2.60 says it.
NOT_PLACED = (
    "Deployment 'Replica' in application 'replicas' has 3 replicas that have taken more than 30s to be scheduled. "
    "This may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. "
    'Resources required for each replica: {"CPU": 1.5, "GPU": 2}, total resources available: {"CPU": 14.5}. '
    "Use `ray status` for more details."
)


@pytest.mark.parametrize(
    ("deployment", "told"),
    [
        (status("", "HEALTHY", RUNNING=4), ""),
        (
            status(NOT_PLACED, RUNNING=1, STARTING=3),
            "wanted 4, running 1, cluster cannot place 3 more now: each needs {CPU: 1.5, GPU: 2}, free {CPU: 14.5}",
        ),
        (status("Upscaling from 1 to 4 replicas.", RUNNING=1, STARTING=3), "wanted 4, running 1, starting 3"),
        (
            status("", "HEALTHY", RUNNING=2),
            "wanted 4, running 2, no more are starting yet: upscale_delay_s is not over, or max_replicas is reached",
        ),
        (
            status("The deployment failed to start 3 times.\nBadSettings: engine.model is wrong\n", "UNHEALTHY"),
            "wanted 4, running 0, replicas do not start: BadSettings: engine.model is wrong",
        ),
        (None, "wanted 4, running 0, the replicas are not deployed"),
    ],
)
def test_waiting_is_explained_in_serve_s_own_words(deployment: DeploymentStatusOverview | None, told: str) -> None:
    assert explain(4, deployment) == told


@pytest.mark.parametrize(
    ("deployment", "told"),
    [
        (status("", "HEALTHY", RUNNING=2), ""),
        (status("", "UPDATING", RUNNING=1, STARTING=1), "wanted 2, running 1, starting 1"),
    ],
)
def test_of_a_fixed_number_of_replicas_no_more_are_expected(deployment: DeploymentStatusOverview, told: str) -> None:
    assert explain(4, deployment, fixed=2) == told
