"""How many replicas the driver's jobs want, told to the autoscaler, and why they are not there yet.

Knows where the demand is stored (the key-value store of Ray's GCS) and what Serve says of its deployments. Does not
know how the number is chosen (jobs/plan.py) nor how it is weighed (serving/autoscaling.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ray import serve
from ray.experimental.internal_kv import _internal_kv_put
from ray.serve.context import _get_global_client
from ray.serve.schema import DeploymentStatusOverview

from serve_app.settings import REPLICA_DEPLOYMENT, REPLICAS_APP

logger = logging.getLogger(__name__)

KV_NAMESPACE = b"serve_app"
# While jobs run, call `Demand.set` at least every RENEW_S. Demand that is not renewed for EXPIRES_S is void: three
# renewals may be lost, and a killed driver soon releases its replicas.
RENEW_S = 5.0
EXPIRES_S = 20.0
# How long a deployment's settings, as told by Serve, are cached; a config file may change them.
SETTINGS_FOR_S = 30.0

# Serve's message for replicas not placed within RAY_SERVE_SLOW_STARTUP_WARNING_S (30 s):
# `_check_and_update_transitioning_replicas` in Ray 2.60's deployment_state.py.
_NOT_PLACED = re.compile(
    r"has (?P<count>\d+) replicas that have taken more than .* to be scheduled.*"
    r"required for each replica: (?P<needs>.+), total resources available: (?P<free>.+?)\. ",
    re.DOTALL,
)


def kv_key(app: str, deployment: str) -> str:
    """Where the demand for a deployment is stored, in KV_NAMESPACE."""
    return f"demand/{app}/{deployment}"


def put_in_kv(key: str, value: str) -> None:
    """Write to the GCS and wait for it. Raises Ray's RpcError when it does not answer."""
    _internal_kv_put(key, value, overwrite=True, namespace=KV_NAMESPACE)


class Demand:
    """The driver's demand for replicas of one deployment.

    Stored as "COUNT STAMP". The stamp only has to differ from write to write: the reader sees live demand by its
    changing, so clocks are never compared.
    """

    def __init__(
        self,
        app: str = REPLICAS_APP,
        deployment: str = REPLICA_DEPLOYMENT,
        *,
        put: Callable[[str, str], None] = put_in_kv,
    ) -> None:
        self._app = app
        self._deployment = deployment
        self._put = put
        self._wanted = 0
        self._fixed: int | None = None
        self._asked_at = -math.inf
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="demand")

    def set(self, replicas: int) -> None:
        """Want so many replicas in all, running ones included; 0 withdraws. Returns at once.

        Call again within RENEW_S while it stands. Raises ValueError below 0.
        """
        if replicas < 0:
            raise ValueError(f"replicas must be 0 or more, got {replicas}")
        if replicas or self._wanted:  # an idle driver writes nothing
            self._wanted = replicas
            self._writer.submit(self._write)

    def _write(self) -> None:
        try:
            self._put(kv_key(self._app, self._deployment), f"{self._wanted} {time.time_ns()}")
        except Exception as error:  # the next renewal is the retry
            logger.warning("the demand for %d replicas was not stored: %s", self._wanted, error)

    async def waiting_reason(self) -> str:
        """Why fewer replicas run than are wanted, as far as Serve says; empty when enough run."""
        app = (await asyncio.to_thread(serve.status)).applications.get(self._app)
        if time.monotonic() - self._asked_at > SETTINGS_FOR_S:
            self._fixed = await asyncio.to_thread(fixed_replicas, self._app, self._deployment)
            self._asked_at = time.monotonic()
        return explain(self._wanted, app and app.deployments.get(self._deployment), fixed=self._fixed)


def fixed_replicas(app: str, deployment: str) -> int | None:
    """The deployment's `num_replicas`; None where replicas are scaled or not deployed."""
    details = _get_global_client().get_serve_details()["applications"].get(app, {})
    config = details.get("deployments", {}).get(deployment, {}).get("deployment_config", {})
    return None if config.get("autoscaling_config") else config.get("num_replicas")


def explain(wanted: int, deployment: DeploymentStatusOverview | None, *, fixed: int | None = None) -> str:
    """Why `wanted` replicas, or the `fixed` number, do not all run; empty if they do."""
    states = {} if deployment is None else deployment.replica_states
    running, starting = states.get("RUNNING", 0), states.get("STARTING", 0)
    wanted = wanted if fixed is None else min(wanted, fixed)
    if running >= wanted:
        return ""
    return f"wanted {wanted}, running {running}, {_hindrance(deployment, starting)}"


def _hindrance(deployment: DeploymentStatusOverview | None, starting: int) -> str:
    if deployment is None:
        return "the replicas are not deployed"
    if deployment.status in ("UNHEALTHY", "DEPLOY_FAILED"):
        told = deployment.message.strip().splitlines() or ["no reason was given"]
        return f"replicas do not start: {told[-1]}"
    if not starting:
        return "no more are starting yet: upscale_delay_s is not over, or max_replicas is reached"
    if found := _NOT_PLACED.search(deployment.message):
        needs, free = (found[name].replace('"', "") for name in ("needs", "free"))
        return f"cluster cannot place {found['count']} more now: each needs {needs}, free {free}"
    return f"starting {starting}"
