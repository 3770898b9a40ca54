"""vLLM without Ray and the driver: same image, weights and options.

A Job with a Service for a few hours on one GPU, and a Deployment for a plain TP=2 server. Populations use either as an
external provider.
"""

from __future__ import annotations

import json
from typing import Any

from serve_app.k8s.pods import (
    HOME,
    ONLINE,
    VLLM_SECRET,
    WORKER_ACCOUNT,
    Manifest,
    container,
    data_volume,
    gpu_placement,
    gpu_resources,
    labels,
    metadata,
    pod,
    secret_variable,
    shm_volume,
    spread,
)
from serve_app.k8s.serve_config import HTTP_PORT, serve_config
from serve_app.k8s.values import Preset, Values, digest

START_TIMEOUT_S = 1800  # to load 140 GB and compile


def vllm_job(values: Values, preset: Preset) -> list[Manifest]:
    """One engine, until it is deleted or four hours have passed."""
    part, spec = "vllm-job", vllm_pod(values, preset)
    spec["restartPolicy"] = "OnFailure"
    job: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {},
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": 4 * 3600,
            "template": {"metadata": {"labels": labels(values, part)}, "spec": spec},
        },
    }
    # Jobs are immutable: a new option needs a new name. The Service selects both.
    job["metadata"] = metadata(values, f"{values.named(part)}-{digest(job['spec'])}", part)
    return [job, service(values, part)]


def vllm_deployment(values: Values, preset: Preset) -> list[Manifest]:
    """The preset's minimum number of engines, replaced one at a time without an extra GPU."""
    part, count = "vllm", max(1, preset.replicas.min)
    spec, ours = vllm_pod(values, preset), labels(values, part)
    spec["topologySpreadConstraints"] = spread(ours)
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(values, values.named(part), part),
        "spec": {
            "replicas": count,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "progressDeadlineSeconds": START_TIMEOUT_S + 600,
            "selector": {"matchLabels": ours},
            "template": {"metadata": {"labels": ours}, "spec": spec},
        },
    }
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(values, values.named(part), part),
        "spec": {
            "maxUnavailable": 1,  # unlike Ray's pods, it has a scale subresource
            "selector": {"matchLabels": ours},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
    return [deployment, service(values, part), budget]


def vllm_pod(values: Values, preset: Preset) -> Manifest:
    """`vllm serve` with the replicas' options; the key is a Secret in vLLM's variable."""
    gpu = values.gpus[preset.gpu or ""]
    data, data_mounts = data_volume(values)
    shm, shm_mount = shm_volume(max(2, gpu.pod_memory_gib * preset.tensor_parallel // 4))
    (replicas,) = [app for app in serve_config(values, preset)["applications"] if app["route_prefix"] == "/"]
    health = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    engine = container(
        values, preset, "vllm", resources=gpu_resources(values, preset, preset.tensor_parallel),
        mounts=(*data_mounts, shm_mount),
        command=["vllm", "serve"], args=flags(replicas["args"]["engine"]),
        ports=[{"name": "http", "containerPort": HTTP_PORT}],
        env=[
            {"name": "HOME", "value": HOME},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "VLLM_PORT", "value": "20000"},
            secret_variable(values, "VLLM_API_KEY", VLLM_SECRET, "api-key"),
        ],
        startupProbe={**health, "periodSeconds": 10, "failureThreshold": START_TIMEOUT_S // 10},
        readinessProbe={**health, "periodSeconds": 5, "failureThreshold": 2},
        livenessProbe={**health, "periodSeconds": 15, "failureThreshold": 4},
        # Leave the Service first; on SIGTERM vLLM finishes its requests.
        lifecycle={"preStop": {"exec": {"command": ["sleep", "15"]}}},
    )  # fmt: skip
    return pod(
        values, [engine], account=WORKER_ACCOUNT, priority=ONLINE, volumes=(data, shm),
        **gpu_placement(preset, "on-demand"),
    )  # fmt: skip


def flags(options: dict[str, Any]) -> list[str]:
    """vLLM's options as arguments of `vllm serve`; the model is positional and first."""
    found = [str(options["model"]), f"--port={HTTP_PORT}"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if name == "model" or value is None:
            continue
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found.append(f"--{flag}={json.dumps(value) if isinstance(value, dict | list) else value}")
    return found


def service(values: Values, part: str) -> Manifest:
    """A cluster-internal Service: outside traffic passes an ingress."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(values, values.named(part), part),
        "spec": {
            "selector": labels(values, part),
            "ports": [{"name": "http", "port": HTTP_PORT, "targetPort": "http"}],
        },
    }
