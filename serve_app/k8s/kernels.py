"""Evaluation workers of kernel generation: one GPU each, as they run code that a model wrote.

What they run is `EVALUATOR`, which comes with the kernels workload. Their queue is a Redis of its own
(k8s/overlays/kernels/redis.yaml): the cluster's must not be within reach of such code.
"""

from __future__ import annotations

from serve_app.k8s.pods import (
    HOME,
    POPULATION_PRIORITY,
    WORKER_ACCOUNT,
    Manifest,
    container,
    gpu_placement,
    gpu_resources,
    labels,
    metadata,
    pod,
    shm_volume,
)
from serve_app.k8s.values import Preset, Values

PART = "kernel-evaluator"
EVALUATOR = ["serve-app", "kernels", "evaluate"]
REDIS_HOST, REDIS_SECRET = "serve-app-kernels-redis", "serve-app-kernels-redis"


def evaluators(values: Values, preset: Preset) -> list[Manifest]:
    """A Deployment of as many as the preset has replicas at most."""
    shm, mount = shm_volume(4)
    evaluator = container(
        values, preset, "evaluator", resources=gpu_resources(values, preset, 1), mounts=(mount,),
        command=EVALUATOR, args=[f"--redis-host={REDIS_HOST}"],
        env=[
            {"name": "HOME", "value": HOME},
            {"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": {"name": REDIS_SECRET, "key": "password"}}},
        ],
    )  # fmt: skip
    spec = pod(
        values, [evaluator], account=WORKER_ACCOUNT, priority=POPULATION_PRIORITY, volumes=(shm,),
        **gpu_placement(preset, "spot"),
    )  # fmt: skip
    # A candidate takes seconds, and the queue gives it to another worker.
    spec["terminationGracePeriodSeconds"] = 60
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(values, PART, PART),
            "spec": {
                "replicas": preset.replicas.max,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "50%"}},
                "selector": {"matchLabels": labels(PART)},
                "template": {"metadata": {"labels": labels(PART)}, "spec": spec},
            },
        }
    ]
