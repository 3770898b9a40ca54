"""How many replicas the driver's jobs want: told to the autoscaler, and why they are not there yet.

Knows where the wish is left (the key-value store of Ray's GCS) and what Serve says of its deployments. Does not know
how many replicas a job deserves (jobs/plan.py) nor how the wish is weighed (serving/autoscaling.py, which says why it
travels this way).
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
# `Demand.set` is to be called at least every RENEW_S while jobs run. A wish that nobody renewed for EXPIRES_S is void:
# long enough for three lost renewals, short enough that a killed driver does not hold replicas.
RENEW_S = 5.0
EXPIRES_S = 20.0
# How long what Serve said of a deployment's settings is taken to be so; a config file may change them.
SETTINGS_FOR_S = 30.0

# Serve says this of replicas that were not placed for RAY_SERVE_SLOW_STARTUP_WARNING_S (30 s); see
# `_check_and_update_transitioning_replicas` in Ray 2.60's deployment_state.py.
_NOT_PLACED = re.compile(
    r"has (?P<count>\d+) replicas that have taken more than .* to be scheduled.*"
    r"required for each replica: (?P<needs>.+), total resources available: (?P<free>.+?)\. ",
    re.DOTALL,
)


def kv_key(app: str, deployment: str) -> str:
    """Where the wish for a deployment is left, in KV_NAMESPACE."""
    return f"demand/{app}/{deployment}"


def leave_in_kv(key: str, value: str) -> None:
    """Write to the GCS, waiting for it. Raises Ray's RpcError when it does not answer."""
    _internal_kv_put(key, value, overwrite=True, namespace=KV_NAMESPACE)


class Demand:
    """The driver's wish for replicas of one deployment.

    The wish is "COUNT STAMP" in text. The stamp only has to differ from write to write: the reader tells a live wish
    by its changing, so that clocks of two machines are never compared.
    """

    def __init__(
        self,
        app: str = REPLICAS_APP,
        deployment: str = REPLICA_DEPLOYMENT,
        *,
        leave: Callable[[str, str], None] = leave_in_kv,
    ) -> None:
        self._app = app
        self._deployment = deployment
        self._leave = leave
        self._wish = 0
        self._fixed: int | None = None
        self._asked_at = -math.inf
        self._teller = ThreadPoolExecutor(1, thread_name_prefix="demand")

    def set(self, replicas: int) -> None:
        """Wish for so many replicas in all, those that run included; 0 withdraws. Returns at once.

        Call it again within RENEW_S for as long as the wish stands. Raises ValueError below 0.
        """
        if replicas < 0:
            raise ValueError(f"replicas must be 0 or more, got {replicas}")
        if replicas or self._wish:  # an idle driver writes nothing
            self._wish = replicas
            self._teller.submit(self._tell)

    def _tell(self) -> None:
        try:
            self._leave(kv_key(self._app, self._deployment), f"{self._wish} {time.time_ns()}")
        except Exception as error:  # the next renewal is the retry
            logger.warning("the wish for %d replicas was not left: %s", self._wish, error)

    async def waiting_reason(self) -> str:
        """Why fewer replicas run than are wished for, as far as Serve says; empty when enough run."""
        app = (await asyncio.to_thread(serve.status)).applications.get(self._app)
        if time.monotonic() - self._asked_at > SETTINGS_FOR_S:
            self._fixed = await asyncio.to_thread(fixed_replicas, self._app, self._deployment)
            self._asked_at = time.monotonic()
        return explain(self._wish, app and app.deployments.get(self._deployment), fixed=self._fixed)


def fixed_replicas(app: str, deployment: str) -> int | None:
    """The deployment's `num_replicas`; None where replicas are scaled, or where there is no such deployment."""
    details = _get_global_client().get_serve_details()["applications"].get(app, {})
    config = details.get("deployments", {}).get(deployment, {}).get("deployment_config", {})
    return None if config.get("autoscaling_config") else config.get("num_replicas")


def explain(wanted: int, deployment: DeploymentStatusOverview | None, *, fixed: int | None = None) -> str:
    """In words, why `wanted` replicas, or the `fixed` number of them, do not all run; empty if they do.

    A cluster may grow, so nothing is final.
    """
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
