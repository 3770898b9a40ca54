"""The replicas follow the driver's backlog: the policy, the wish and its end, and what is said while waiting."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve import autoscaling_policy as serve_policies
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, DeploymentStatusTrigger, ReplicaState

from serve_app.driver.demand import EXPIRES_S, KV_NAMESPACE, RENEW_S, Demand, explain, kv_key, leave_in_kv
from serve_app.serving import autoscaling
from serve_app.serving.autoscaling import BacklogPolicy, Wish, replicas_needed

ROOT = Path(__file__).parents[2]
KEY = kv_key("replicas", "Replica")
counts = st.integers(0, 10_000)
bounds = st.tuples(st.integers(0, 64), st.integers(1, 64)).map(lambda two: (min(two), max(two)))
# Serve's mean is a number of 0 or more; the policy must stand anything, as it runs in Serve's controller.
requests = st.floats(allow_nan=True, allow_infinity=True)
targets = st.floats(min_value=0.1, max_value=1000)


# --- the number ---


@given(requests, targets, counts, bounds)
def test_the_number_stays_within_the_bounds_whatever_is_measured(
    requests: float, target: float, wish: int, bounds: tuple[int, int]
) -> None:
    lower, upper = bounds
    needed = replicas_needed(requests=requests, requests_per_replica=target, wish=wish, lower=lower, upper=upper)
    assert isinstance(needed, int)
    assert lower <= needed <= upper


@given(requests, targets, counts, counts, bounds)
def test_a_larger_wish_never_gives_fewer_replicas(
    requests: float, target: float, one: int, other: int, bounds: tuple[int, int]
) -> None:
    def needed(wish: int) -> int:
        return replicas_needed(
            requests=requests, requests_per_replica=target, wish=wish, lower=bounds[0], upper=bounds[1]
        )

    assert needed(min(one, other)) <= needed(max(one, other))


@given(st.floats(0, 1e6), targets, counts, bounds)
def test_the_number_is_the_larger_of_online_demand_and_wish(
    requests: float, target: float, wish: int, bounds: tuple[int, int]
) -> None:
    lower, upper = bounds
    needed = replicas_needed(requests=requests, requests_per_replica=target, wish=wish, lower=lower, upper=upper)
    assert needed == max(lower, min(upper, max(wish, math.ceil(requests / target))))


# --- the wish ---


def test_a_wish_counts_once_it_is_renewed_and_until_it_expires() -> None:
    now = 0.0
    wish = Wish(EXPIRES_S, clock=lambda: now)
    wish.saw(None)
    wish.saw(b"4 1")
    assert wish.replicas() == 4
    now = EXPIRES_S - 0.1
    wish.saw(b"4 1")  # nobody renewed it
    assert wish.replicas() == 4
    now = EXPIRES_S
    assert wish.replicas() == 0
    wish.saw(b"4 2")
    assert wish.replicas() == 4


def test_a_wish_that_lay_there_before_we_looked_is_of_a_dead_driver_until_it_is_renewed() -> None:
    wish = Wish(EXPIRES_S)
    wish.saw(b"4 1")
    wish.saw(b"4 1")
    assert wish.replicas() == 0
    wish.saw(b"4 2")
    assert wish.replicas() == 4


@given(st.lists(st.none() | st.binary() | counts.map(lambda n: b"%d 0" % n)))
def test_what_lies_in_the_store_is_a_number_or_a_value_error(contents: list[bytes | None]) -> None:
    wish = Wish(EXPIRES_S)
    for left in contents:
        with suppress(ValueError):
            wish.saw(left)
        assert isinstance(wish.replicas(), int)


def test_a_killed_driver_s_wish_ends_within_30_s() -> None:
    assert EXPIRES_S + BacklogPolicy()._poll_s <= 30
    assert 3 * RENEW_S < EXPIRES_S


# --- the driver's side ---


class Store:
    """Ray's key-value store as the driver sees it, without Ray."""

    def __init__(self, *, broken: bool = False) -> None:
        self.written: list[tuple[str, str]] = []
        self._broken = broken
        self._changed = threading.Condition()

    def leave(self, key: str, value: str) -> None:
        with self._changed:
            self.written.append((key, value))
            self._changed.notify_all()
        if self._broken:
            raise RuntimeError("GCS is away")

    def wait(self, writes: int) -> list[tuple[str, str]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.written) >= writes, timeout=5)
        return self.written


def test_the_policy_reads_what_the_driver_leaves() -> None:
    store, wish = Store(), Wish(EXPIRES_S)
    wish.saw(None)
    Demand(leave=store.leave).set(5)
    ((key, value),) = store.wait(1)
    wish.saw(value.encode())
    assert wish.replicas() == 5
    assert key == autoscaling.KV_KEY.format(app="replicas", deployment="Replica")


def test_a_renewal_of_the_same_number_is_another_text() -> None:
    store = Store()
    demand = Demand(leave=store.leave)
    demand.set(2)
    store.wait(1)
    demand.set(2)
    (_, first), (_, second) = store.wait(2)
    assert first != second


def test_an_idle_driver_withdraws_its_wish_once_and_leaves_another_driver_s_alone() -> None:
    store = Store()
    demand = Demand(leave=store.leave)
    demand.set(0)
    demand.set(2)
    store.wait(1)
    for _ in range(3):
        demand.set(0)
    demand._teller.shutdown()
    assert [value.split()[0] for _, value in store.written] == ["2", "0"]


def test_a_store_that_fails_is_tried_again_at_the_next_renewal() -> None:
    store = Store(broken=True)
    demand = Demand(leave=store.leave)
    demand.set(2)
    store.wait(1)
    demand.set(2)
    store.wait(2)


def test_setting_a_wish_does_not_wait_for_the_store() -> None:
    gate = threading.Event()

    def leave(key: str, value: str) -> None:
        gate.wait(5)

    demand = Demand(leave=leave)
    started = time.perf_counter()
    for _ in range(10):
        demand.set(1)
    assert time.perf_counter() - started < 1
    gate.set()


def test_a_wish_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, got -1"):
        Demand(leave=lambda key, value: None).set(-1)


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
        self.policy._wish.saw(None)
        self.policy._wish.saw(b"%d 0" % replicas)

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
    policy._wish.saw(None)
    policy._wish.saw(b"%d 0" % wish)
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
    eventually(lambda: policy._wish.replicas() == 1)
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
    eventually(lambda: policy._wish.replicas() == 2)


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
print(policy._wish.replicas(), sorted({"torch", "vllm", "transformers"} & set(sys.modules)))
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
            "wanted 4, running 2, no more are starting yet: upscale_delay_s is not over, or max_replicas "
            "(num_replicas) is reached",
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


# --- the real thing ---


@pytest.mark.timeout(180)
def test_replicas_of_a_real_serve_follow_a_wish_from_0_to_2_to_what_fits_and_back_to_0_when_it_is_not_renewed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.test_autoscaling"],
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
            leave_in_kv(KEY, "5 0")
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
