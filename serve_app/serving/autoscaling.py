"""Serve's autoscaling policy for the replicas: the larger of online requests' and the driver's demand.

Runs in the Serve controller. Knows the requests that Serve counts and the driver's demand; does not know jobs. In
config.yaml, of the deployment Replica:

    autoscaling_config:
      min_replicas: 0
      max_replicas: 8
      target_ongoing_requests: 64 # a replica; each chunk of its window counts as one, so well above them
      upscale_delay_s: 5
      downscale_delay_s: 300
      policy:
        policy_function: serve_app.serving.autoscaling:BacklogPolicy

Serve applies min_replicas, max_replicas, both delays and the scaling factors to the answer (`_apply_autoscaling_config`
in Ray 2.60's autoscaling_policy.py), and stops replicas first that do not run yet. From zero it does not wait; to zero
it goes in two steps, by way of one replica. With no replica and an online request queued it starts one without asking
the policy; demand then counts once that one runs.

The demand comes through the key-value store of Ray's GCS: one small read a second in a thread, no process to run, and
it outlives driver and controller. The store's functions are not quite public. The public ways do not fit:

- calls queued at a handle start only one replica from zero, and are weighed as online requests;
- `record_autoscaling_stats` and application-level policies do not reach across applications, and nobody records while
  no replica runs;
- a named actor is one more process to place, watch and wait for;
- the driver's route needs the proxy's address, certificate and key in the controller;
- Serve's scale API needs Ray's dashboard, and overrides online demand.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get
from ray.serve.config import AutoscalingContext

from serve_app.driver import demand

# Serve pickles this module by value into the controller, where serve_app may be missing: use constants of other
# modules, not functions.
EXPIRES_S = demand.EXPIRES_S
KV_NAMESPACE = demand.KV_NAMESPACE
KV_KEY = demand.kv_key("{app}", "{deployment}")

logger = logging.getLogger("ray.serve")


class BacklogPolicy:
    """The policy. Answers from memory: waiting or raising here would stop all of Serve.

    Its arguments are `policy_kwargs` in config.yaml.
    """

    def __init__(self, poll_s: float = 1.0, expires_s: float = EXPIRES_S) -> None:
        self._poll_s = poll_s
        self._driver_demand = DriverDemand(expires_s)
        self._reader: threading.Thread | None = None

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        if self._reader is None:
            self._start_reader(KV_KEY.format(app=ctx.app_name, deployment=ctx.deployment_name))
        return replicas_needed(
            requests=ctx.total_num_requests,
            requests_per_replica=ctx.config.get_target_ongoing_requests(),
            wanted=self._driver_demand.replicas(),
            lower=ctx.capacity_adjusted_min_replicas,
            upper=ctx.capacity_adjusted_max_replicas,
        ), {}

    def _start_reader(self, key: str) -> None:
        stop = threading.Event()
        # The thread must not reference the policy: each new deployment makes a new one, and the old must be freed.
        self._reader = threading.Thread(
            target=_read, args=(self._driver_demand, key, self._poll_s, stop), name="serve-app-demand", daemon=True
        )
        self._reader.start()
        weakref.finalize(self, stop.set)


def replicas_needed(*, requests: float, requests_per_replica: float, wanted: int, lower: int, upper: int) -> int:
    """The larger of `wanted` and what `requests` (running and queued, averaged over seconds) need, within bounds."""
    online = min(requests / requests_per_replica, upper)
    return max(lower, min(upper, max(wanted, math.ceil(online) if online > 0 else 0)))


class DriverDemand:
    """The driver's demand as last read; 0 when not renewed for `expires_s`.

    It counts once it changes: what the first look finds may be a dead driver's, and a live one renews it in seconds.
    """

    def __init__(self, expires_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._expires_s = expires_s
        self._clock = clock
        self._looked = False
        self._left: bytes | None = None
        # One tuple, so that the other thread sees both or neither.
        self._live = (0, -math.inf)

    def update(self, left: bytes | None) -> None:
        """Take the stored value. Raises ValueError unless `Demand` wrote it."""
        renewed = self._looked and left != self._left
        self._looked, self._left = True, left
        if renewed and left is not None:
            self._live = (int(left.partition(b" ")[0]), self._clock() + self._expires_s)

    def replicas(self) -> int:
        """The demand that is valid now."""
        replicas, until = self._live
        return replicas if self._clock() < until else 0


def _read(driver_demand: DriverDemand, key: str, poll_s: float, stop: threading.Event) -> None:
    while True:
        try:
            driver_demand.update(_internal_kv_get(key, namespace=KV_NAMESPACE))
        except Exception as error:  # GCS away or foreign text: demand expires, online requests still count
            logger.warning("the driver's demand for replicas was not read: %s", error)
        if stop.wait(poll_s):
            return
