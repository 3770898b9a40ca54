"""The Ray cluster of a RayService or RayJob: a head without GPUs, workers by GPU type, and control pods.

KubeRay 1.7 adds probes, /dev/shm, port variables and the token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serve_app.k8s.options import logs, tls
from serve_app.k8s.pods import (
    HEAD_ACCOUNT,
    HOME,
    ONLINE,
    POPULATION,
    REDIS_SECRET,
    STORE_ACCOUNT,
    WORKER_ACCOUNT,
    Manifest,
    burstable_resources,
    container,
    data_volume,
    gpu_placement,
    gpu_resources,
    keys_volume,
    labels,
    pod,
    provider_keys,
    same_resources,
    spread,
)
from serve_app.k8s.serve_config import CONTROL_LABEL
from serve_app.k8s.values import DATA, Preset, Values, ray_version

HEAD_PORTS = {
    "gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000,
    "metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227,
}  # fmt: skip
WORKER_PORTS = {"serve": 8000, "metrics": 8080}
HEAD, REPLICA, CONTROL = "head", "replica", "control"
# SIGTERM alone stops Ray at once; this waits for open streams.
DRAIN = {"preStop": {"exec": {"command": ["python3", "-m", "serve_app.serving.drain"]}}}


@dataclass(frozen=True, slots=True)
class Purpose:
    """`prefix` starts the names of the pods' parts, so a server's budgets and policies select only its own."""

    prefix: str
    capacity: Literal["on-demand", "spot"]
    priority: str
    serves: bool  # has keys and outlives its head

    def labels(self, values: Values, part: str) -> dict[str, str]:
        return labels(values, self.prefix + part)


SERVER = Purpose("", "on-demand", ONLINE, serves=True)
POPULATION_RUN = Purpose("population-", "spot", POPULATION, serves=False)


def ray_cluster(values: Values, preset: Preset, purpose: Purpose = SERVER) -> Manifest:
    """A RayClusterSpec."""
    groups = [replica_group(values, preset, purpose)]
    if preset.gpu:
        groups.append(control_group(values, preset, purpose))
    return {
        "rayVersion": ray_version(),
        # The operator makes the token. Serve's HTTP port uses our keys.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "resources": same_resources(1, 1) if preset.gpu else burstable_resources(1, 1),
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        },
        **(fault_tolerance(values) if purpose.serves else {}),
        "headGroupSpec": head_group(values, preset, purpose),
        "workerGroupSpecs": groups,
    }


def fault_tolerance(values: Values) -> Manifest:
    """GCS fault tolerance: Serve survives the head. A population's state is in its store instead."""
    password = {"valueFrom": {"secretKeyRef": {"name": values.named(REDIS_SECRET), "key": "password"}}}
    address = values.redis.address or f"redis://{values.named('redis')}:6379"
    return {"gcsFaultToleranceOptions": {"redisAddress": address, "redisPassword": password}}


def environment(values: Values) -> dict[str, str]:
    """Variables of every Ray process. `serve_app.serving.haproxy.environment` has them for one machine, and why."""
    return {
        "HOME": HOME,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": "/opt/venv/bin/serve-app-haproxy",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "86400",
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        "RAY_SERVE_HAPROXY_RETRIES": "64",
        "RAY_SERVE_PORT_QUARANTINE_S": "600",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "3",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.serving.backpressure.middlewares",
        "RAY_worker_niceness": "0",
        # Otherwise the replacement of a hung engine waits a whole drain for its GPUs.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "SERVE_APP_DRAIN_S": str(values.drain_s),
        # vLLM searches for a free port from here; its default range may include Serve's port.
        "VLLM_PORT": "20000",
        "HF_HUB_OFFLINE": "1",  # weights are local
        **(tls.ENVIRONMENT if values.tls.pods else {}),
    }


def head_group(values: Values, preset: Preset, purpose: Purpose) -> Manifest:
    """GCS, dashboard, Serve controller and autoscaler. No replica, which could take the head down."""
    writable = _writable(values, purpose) if preset.gpu is None else None  # else the driver is elsewhere
    volumes, mounts = _volumes(values, purpose, writable)
    resources = same_resources(2, 8) if preset.gpu else burstable_resources(2, 3)
    head = container(
        values, preset, "ray-head", resources=resources, mounts=mounts, environment=environment(values),
        ports=container_ports(HEAD_PORTS),
    )  # fmt: skip
    spec = pod(values, [head], account=HEAD_ACCOUNT, priority=ONLINE, volumes=volumes, **beside(values))
    spec["automountServiceAccountToken"] = True  # the autoscaler's; the operator binds its role
    # A PodDisruptionBudget for a single pod would block drains forever.
    annotations = {"karpenter.sh/do-not-disrupt": "true"}
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"metadata": {"labels": purpose.labels(values, HEAD), "annotations": annotations}, "spec": spec},
    }


def replica_group(values: Values, preset: Preset, purpose: Purpose) -> Manifest:
    """On GPUs one replica a pod. On CPU one pod for all replicas, which share its cores."""
    volumes, mounts = _volumes(values, purpose, "" if preset.gpu else _writable(values, purpose))
    keys: Manifest = {}
    bounds = {"replicas": preset.replicas.min, "minReplicas": preset.replicas.min, "maxReplicas": preset.replicas.max}
    if preset.gpu:
        resources = gpu_resources(values, preset, preset.tensor_parallel)
        pods_labels = purpose.labels(values, REPLICA)
        placement = {**gpu_placement(preset, purpose.capacity), "topologySpreadConstraints": spread(pods_labels)}
    else:
        # A core and 1.5 GiB a rank with its cache, plus Ray, Serve and the driver.
        ranks = preset.tensor_parallel * preset.replicas.max
        resources = burstable_resources(ranks, 2 + 2 * ranks)
        placement = {"affinity": beside_head(values, purpose)} if values.shares_node else {}
        keys = {"envFrom": provider_keys(values)}  # the driver is here
        bounds = {"replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    worker = container(
        values, preset, "ray-worker", resources=resources, mounts=mounts,
        environment=environment(values), ports=container_ports(WORKER_PORTS), lifecycle=DRAIN,
        **keys, **readiness(values, purpose),
    )  # fmt: skip
    spec = pod(
        values, [worker], account=WORKER_ACCOUNT, priority=purpose.priority, volumes=volumes,
        **placement, **beside(values),
    )  # fmt: skip
    return {
        "groupName": f"{preset.gpu or 'cpu'}-{purpose.capacity}",
        **bounds,
        "rayStartParams": {},
        "template": {"metadata": {"labels": purpose.labels(values, REPLICA)}, "spec": spec},
    }


def control_group(values: Values, preset: Preset, purpose: Purpose) -> Manifest:
    """Driver, files and batches, on CPU nodes. Only these pods write to the store."""
    volumes, mounts = _volumes(values, purpose, _writable(values, purpose))
    worker = container(
        values, preset, "ray-worker", resources=same_resources(4, 16), mounts=mounts,
        environment=environment(values), ports=container_ports(WORKER_PORTS), lifecycle=DRAIN,
        envFrom=provider_keys(values), **readiness(values, purpose),
    )  # fmt: skip
    # Not the population's priority: a server's upgrade could preempt the driver and stop all replicas.
    spec = pod(values, [worker], account=STORE_ACCOUNT, priority=ONLINE, volumes=volumes, **beside(values))
    return {
        "groupName": CONTROL,
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 2,  # during a drain
        "labels": CONTROL_LABEL,
        "rayStartParams": {"num-gpus": "0"},
        "template": {"metadata": {"labels": purpose.labels(values, CONTROL)}, "spec": spec},
    }


def readiness(values: Values, purpose: Purpose) -> Manifest:
    """A worker's probe where Serve speaks HTTPS; else KubeRay's own, which asks by HTTP."""
    return {"readinessProbe": tls.READINESS} if values.tls.pods and purpose.serves else {}


def beside(values: Values) -> Manifest:
    """Containers beside Ray's."""
    return {"initContainers": [logs.log_printer(values)]} if values.logs else {}


def beside_head(values: Values, purpose: Purpose) -> Manifest:
    """A ReadWriteOnce claim needs the head's node."""
    head = {"matchLabels": purpose.labels(values, HEAD)}
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": head}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _writable(values: Values, purpose: Purpose) -> str:
    """A server's driver may write all of it, a population's its own folder."""
    return DATA if purpose.serves else values.population_store


def _volumes(
    values: Values, purpose: Purpose, writable: str | None
) -> tuple[tuple[Manifest, ...], tuple[Manifest, ...]]:
    """(volumes, mounts): keys for servers, and data unless `writable` is None."""
    volumes: tuple[Manifest, ...] = ()
    mounts: tuple[Manifest, ...] = ()
    if purpose.serves:
        keys, mount = keys_volume(values)
        volumes, mounts = (keys,), (mount,)
        if values.tls.pods:
            certificate, mount = tls.volume(values)
            volumes, mounts = (*volumes, certificate), (*mounts, mount)
    if writable is None:
        return volumes, mounts
    data, more = data_volume(values, writable=writable)
    return (*volumes, data), (*mounts, *more)


def container_ports(ports: dict[str, int]) -> list[Manifest]:
    return [{"name": name, "containerPort": port} for name, port in ports.items()]
