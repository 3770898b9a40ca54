"""Serve's autoscaling policy for the replicas: what online requests ask for or what the driver wishes, the larger.

Runs in the Serve controller. Knows the requests that Serve counts and the driver's wish; does not know jobs. In
config.yaml, of the deployment Replica:

    autoscaling_config:
      min_replicas: 0
      max_replicas: 8
      target_ongoing_requests: 64 # a replica; each chunk of its window counts as one, so well above them
      upscale_delay_s: 5
      downscale_delay_s: 300
      policy:
        policy_function: serve_app.serving.autoscaling:BacklogPolicy

Serve applies min_replicas, max_replicas, both delays and the scaling factors to a custom policy's answer by itself
(`_apply_autoscaling_config` in Ray 2.60's autoscaling_policy.py), and stops replicas that do not run yet first.
From zero it does not wait; back to zero it goes by way of one replica, with a delay before each of the two steps.
With no replica running and an online request queued it does not ask the policy at all, and starts one: a wish then
counts once that one runs, or counts fully if it came first.

The wish comes through the key-value store of Ray's GCS, read by a thread: one small read a second, no process of its
own, and it outlives driver and controller. The store is Ray's, but its functions are not quite public. What is:

- calls queued at a handle are demand to Serve, but start one replica from zero, and are weighed as online requests;
- `record_autoscaling_stats` and application-level policies reach no further than one application, the driver is
  another, and there is nobody to ask while no replica runs;
- a named actor is a process more to place, to watch and to wait for;
- asking the driver's route needs the proxy's address, certificate and key inside the controller;
- Serve's scale API needs Ray's dashboard, and takes the decision away from online demand.
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

# Serve pickles this module by value and loads it in the controller, where serve_app may not be installed. Constants
# travel with it, functions of other modules of ours would not.
EXPIRES_S = demand.EXPIRES_S
KV_NAMESPACE = demand.KV_NAMESPACE
KV_KEY = demand.kv_key("{app}", "{deployment}")

logger = logging.getLogger("ray.serve")


class BacklogPolicy:
    """The policy. Its answer comes from memory: it neither waits nor raises, as either would stop all of Serve.

    Its arguments are `policy_kwargs` in config.yaml.
    """

    def __init__(self, poll_s: float = 1.0, expires_s: float = EXPIRES_S) -> None:
        self._poll_s = poll_s
        self._wish = Wish(expires_s)
        self._reader: threading.Thread | None = None

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        if self._reader is None:
            self._start_reader(KV_KEY.format(app=ctx.app_name, deployment=ctx.deployment_name))
        return replicas_needed(
            requests=ctx.total_num_requests,
            requests_per_replica=ctx.config.get_target_ongoing_requests(),
            wish=self._wish.replicas(),
            lower=ctx.capacity_adjusted_min_replicas,
            upper=ctx.capacity_adjusted_max_replicas,
        ), {}

    def _start_reader(self, key: str) -> None:
        stop = threading.Event()
        # The thread must not know the policy: each new deployment makes a new one, and the old is to go.
        self._reader = threading.Thread(
            target=_read, args=(self._wish, key, self._poll_s, stop), name="serve-app-demand", daemon=True
        )
        self._reader.start()
        weakref.finalize(self, stop.set)


def replicas_needed(*, requests: float, requests_per_replica: float, wish: int, lower: int, upper: int) -> int:
    """The larger of what `requests` (running and queued, a mean of some seconds) need and `wish`, within bounds."""
    online = min(requests / requests_per_replica, upper)
    return max(lower, min(upper, max(wish, math.ceil(online) if online > 0 else 0)))


class Wish:
    """The driver's wish as last read, 0 once it was not renewed for `expires_s`.

    A wish counts when it changes before our eyes. What lay there at the first look may be of a driver that is long
    dead; one that lives renews it in seconds.
    """

    def __init__(self, expires_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._expires_s = expires_s
        self._clock = clock
        self._looked = False
        self._left: bytes | None = None
        # One tuple, so that the other thread sees both or neither.
        self._live = (0, -math.inf)

    def saw(self, left: bytes | None) -> None:
        """Take what lies in the store now. Raises ValueError for what `Demand` never left there."""
        renewed = self._looked and left != self._left
        self._looked, self._left = True, left
        if renewed and left is not None:
            self._live = (int(left.partition(b" ")[0]), self._clock() + self._expires_s)

    def replicas(self) -> int:
        """The wish that is valid now."""
        replicas, until = self._live
        return replicas if self._clock() < until else 0


def _read(wish: Wish, key: str, poll_s: float, stop: threading.Event) -> None:
    while True:
        try:
            wish.saw(_internal_kv_get(key, namespace=KV_NAMESPACE))
        except Exception as error:  # GCS away, or not our text: the wish runs out, online demand still counts
            logger.warning("the driver's wish for replicas was not read: %s", error)
        if stop.wait(poll_s):
            return
