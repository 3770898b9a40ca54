"""The Ray cluster of a RayService or RayJob: a head without devices, workers by GPU type, and control pods.

The operator (KubeRay 1.7) adds to each Ray pod what it needs: probes, /dev/shm, ports' environment, the token. What is
said here is what it cannot know.
"""

from __future__ import annotations

from serve_app.k8s.pods import (
    HEAD_ACCOUNT,
    HOME,
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
    same_resources,
    spread,
)
from serve_app.k8s.serve_config import CONTROL_LABEL
from serve_app.k8s.values import Preset, Values, ray_version

REDIS_ADDRESS = "redis://serve-app-redis:6379"
HEAD_PORTS = {
    "gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000,
    "metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227,
}  # fmt: skip
WORKER_PORTS = {"serve": 8000, "metrics": 8080}
HEAD, REPLICA, CONTROL = "head", "replica", "control"
# SIGTERM alone would stop Ray at once: this tells Ray to move the replicas elsewhere and waits for their streams.
DRAIN = {"preStop": {"exec": {"command": ["python3", "-m", "serve_app.serving.drain"]}}}


def ray_cluster(values: Values, preset: Preset, *, capacity: str = "on-demand", priority: str) -> Manifest:
    """A RayClusterSpec. `capacity` is what the replicas' nodes are bought as: on-demand or spot."""
    groups = [replica_group(values, preset, capacity=capacity, priority=priority)]
    if preset.gpu:
        groups.append(control_group(values, preset, priority=priority))
    return {
        "rayVersion": ray_version(),
        # A token of its own for each cluster, in a Secret that the operator makes. Serve's HTTP port has our keys.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "resources": same_resources(1, 1) if preset.gpu else burstable_resources(1, 1),
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        },
        # The cluster outlives its head: Serve goes on, and jobs are in the store anyway.
        "gcsFaultToleranceOptions": {
            "redisAddress": REDIS_ADDRESS,
            "redisPassword": {"valueFrom": {"secretKeyRef": {"name": REDIS_SECRET, "key": "password"}}},
        },
        "headGroupSpec": head_group(values, preset, priority=priority),
        "workerGroupSpecs": groups,
    }


def environment(values: Values) -> dict[str, str]:
    """Of every Ray process; `serve_app.serving.launch.local.serve_environment` sets the same on one machine."""
    return {
        "HOME": HOME,
        "RAY_SERVE_HAPROXY_BINARY_PATH": "/opt/venv/bin/serve-app-haproxy",
        "RAY_SERVE_PROXY_USE_GRPC": "1",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
        "RAY_worker_niceness": "0",
        # A hung engine does not end in order: without this its replacement waits a whole drain for its GPUs.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(2 * values.drain_s),
        "SERVE_APP_DRAIN_S": str(values.drain_s),
        # vLLM looks for a free port from here on; by default it may find Serve's.
        "VLLM_PORT": "20000",
        "HF_HUB_OFFLINE": "1",  # weights are on the volume or in the image
    }


def head_group(values: Values, preset: Preset, *, priority: str) -> Manifest:
    """GCS, dashboard, Serve's controller and the autoscaler; no replica, so nothing of it can take the head down."""
    keys, keys_mount = keys_volume()
    volumes, mounts = [keys], [keys_mount]
    if preset.gpu is None:  # without control pods, the driver may be here
        data, data_mount = data_volume(models_only=False)
        volumes, mounts = [*volumes, data], [*mounts, data_mount]
    resources = same_resources(2, 8) if preset.gpu else burstable_resources(2, 3)
    head = container(
        values, preset, "ray-head", resources=resources, mounts=tuple(mounts), environment=environment(values),
        ports=container_ports(HEAD_PORTS),
    )  # fmt: skip
    spec = pod(values, [head], account=HEAD_ACCOUNT, priority=priority, volumes=tuple(volumes))
    spec["automountServiceAccountToken"] = True  # the autoscaler's, with the role that the operator binds
    # Not worth a PodDisruptionBudget, which for a single pod would block its node for ever.
    annotations = {"karpenter.sh/do-not-disrupt": "true"}
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"metadata": {"labels": labels(HEAD), "annotations": annotations}, "spec": spec},
    }


def replica_group(values: Values, preset: Preset, *, capacity: str, priority: str) -> Manifest:
    """On GPUs one replica a pod, which has exactly its GPUs. On CPU all in one pod, where they can share out cores."""
    keys, keys_mount = keys_volume()
    data, data_mount = data_volume(models_only=preset.gpu is not None)
    bounds = {"replicas": preset.replicas.min, "minReplicas": preset.replicas.min, "maxReplicas": preset.replicas.max}
    if preset.gpu:
        resources = gpu_resources(values, preset, preset.tensor_parallel)
        placement = {**gpu_placement(preset, capacity), "topologySpreadConstraints": spread(REPLICA)}
    else:
        # A rank takes a core, and 1.5 GiB with its part of the cache; the rest is for Ray, Serve and the driver.
        ranks = preset.tensor_parallel * preset.replicas.max
        resources = burstable_resources(ranks, 2 + 2 * ranks)
        placement = {}
        bounds = {"replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    worker = container(
        values, preset, "ray-worker", resources=resources, mounts=(keys_mount, data_mount),
        environment=environment(values), ports=container_ports(WORKER_PORTS), lifecycle=DRAIN,
    )  # fmt: skip
    spec = pod(values, [worker], account=WORKER_ACCOUNT, priority=priority, volumes=(keys, data), **placement)
    return {
        "groupName": f"{preset.gpu or 'cpu'}-{capacity}",
        **bounds,
        "rayStartParams": {},
        "template": {"metadata": {"labels": labels(REPLICA)}, "spec": spec},
    }


def control_group(values: Values, preset: Preset, *, priority: str) -> Manifest:
    """Driver, files and batches, on nodes without GPU; the only pods that write to the store."""
    keys, keys_mount = keys_volume()
    data, data_mount = data_volume(models_only=False)
    worker = container(
        values, preset, "ray-worker", resources=same_resources(4, 16), mounts=(keys_mount, data_mount),
        environment=environment(values), ports=container_ports(WORKER_PORTS), lifecycle=DRAIN,
    )  # fmt: skip
    spec = pod(values, [worker], account=STORE_ACCOUNT, priority=priority, volumes=(keys, data))
    return {
        "groupName": CONTROL,
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 2,  # while one is drained
        "labels": CONTROL_LABEL,
        "rayStartParams": {"num-gpus": "0"},
        "template": {"metadata": {"labels": labels(CONTROL)}, "spec": spec},
    }


def container_ports(ports: dict[str, int]) -> list[Manifest]:
    return [{"name": name, "containerPort": port} for name, port in ports.items()]
