"""Serve's autoscaling policy: replicas for online requests or for the driver's demand, whichever is larger.

Runs in the Serve controller. In config.yaml, of the deployment Replica:

    autoscaling_config:
      min_replicas: 0
      max_replicas: 8
      target_ongoing_requests: 64 # a replica; online requests only, as the driver's chunks do not count
      upscale_delay_s: 5
      downscale_delay_s: 300
      policy:
        policy_function: serve_app.serving.autoscaling:BacklogPolicy

Serve applies min_replicas, max_replicas, delays and scaling factors (`_apply_autoscaling_config` in Ray 2.60's
autoscaling_policy.py), and first stops replicas that do not run yet. From zero it does not wait; to zero it goes by way
of one replica. With no replica and an online request queued it starts one without the policy.

The demand comes through the key-value store of Ray's GCS. This costs one small read a second, needs no process, and
outlives driver and controller, but is not quite public. The public ways do not fit:

- calls queued at a handle start only one replica from zero, and count as online requests;
- `record_autoscaling_stats` and application-level policies do not cross applications;
- a named actor is one more process to place and watch;
- the driver's route needs the proxy's address, certificate and key;
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

# Serve pickles this module by value into the controller, which may lack serve_app: use only constants of other modules.
EXPIRES_S = demand.EXPIRES_S
KV_NAMESPACE = demand.KV_NAMESPACE
KV_KEY = demand.kv_key("{app}", "{deployment}")

logger = logging.getLogger("ray.serve")


class BacklogPolicy:
    """Answers from memory, because waiting or raising would stop all of Serve. Arguments are `policy_kwargs` in
    config.yaml.
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
        # Without a reference to the policy, so that a replaced one is freed.
        self._reader = threading.Thread(
            target=_read, args=(self._driver_demand, key, self._poll_s, stop), name="serve-app-demand", daemon=True
        )
        self._reader.start()
        weakref.finalize(self, stop.set)


def replicas_needed(*, requests: float, requests_per_replica: float, wanted: int, lower: int, upper: int) -> int:
    """The larger of `wanted` and the need of `requests` (running and queued, averaged over seconds), within bounds."""
    online = min(requests / requests_per_replica, upper)
    return max(lower, min(upper, max(wanted, math.ceil(online) if online > 0 else 0)))


class DriverDemand:
    """The driver's last read demand; 0 when not renewed for `expires_s`. The first value may be a dead driver's, so
    demand counts only after a change.
    """

    def __init__(self, expires_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._expires_s = expires_s
        self._clock = clock
        self._looked = False
        self._left: bytes | None = None
        # One tuple, so that threads see both or neither.
        self._live = (0, -math.inf)

    def update(self, left: bytes | None) -> None:
        """Take the stored value. Raises ValueError if not `Demand`'s."""
        renewed = self._looked and left != self._left
        self._looked, self._left = True, left
        if renewed and left is not None:
            self._live = (int(left.partition(b" ")[0]), self._clock() + self._expires_s)

    def replicas(self) -> int:
        """The currently valid demand."""
        replicas, until = self._live
        return replicas if self._clock() < until else 0


def _read(driver_demand: DriverDemand, key: str, poll_s: float, stop: threading.Event) -> None:
    while True:
        try:
            driver_demand.update(_internal_kv_get(key, namespace=KV_NAMESPACE))
        except Exception as error:  # GCS away or foreign text: demand expires
            logger.warning("the driver's demand for replicas was not read: %s", error)
        if stop.wait(poll_s):
            return
