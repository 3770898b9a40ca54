"""Evaluation workers for kernel generation, with one GPU each, since they run code written by a model.

They run the kernels workload's `EVALUATOR`. Their queue is a separate Redis (installation/templates/kernels.yaml), as
untrusted code must not reach the cluster's.
"""

from __future__ import annotations

from serve_app.k8s.installation.base import from_template
from serve_app.k8s.pods import (
    HOME,
    KERNELS_REDIS,
    POPULATION,
    WORKER_ACCOUNT,
    Manifest,
    container,
    gpu_placement,
    gpu_resources,
    labels,
    metadata,
    pod,
    secret_variable,
    shm_volume,
)
from serve_app.k8s.values import Preset, Values

PART = "kernel-evaluator"
EVALUATOR = ["serve-app", "kernels", "evaluate"]


def evaluators(values: Values, preset: Preset) -> list[Manifest]:
    """The queue and the workers: as many as the preset's maximum of replicas."""
    shm, mount = shm_volume(4)
    evaluator = container(
        values, preset, "evaluator", resources=gpu_resources(values, preset, 1), mounts=(mount,),
        command=EVALUATOR, args=[f"--redis-host={values.named(KERNELS_REDIS)}"],
        env=[
            {"name": "HOME", "value": HOME},
            secret_variable(values, "REDIS_PASSWORD", KERNELS_REDIS, "password"),
        ],
    )  # fmt: skip
    spec = pod(
        values, [evaluator], account=WORKER_ACCOUNT, priority=POPULATION, volumes=(shm,),
        **gpu_placement(preset, "spot"),
    )  # fmt: skip
    # A candidate takes seconds. The queue gives it to another worker.
    spec["terminationGracePeriodSeconds"] = 60
    return [
        *from_template(values, "kernels"),
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(values, values.named(PART), PART),
            "spec": {
                "replicas": preset.replicas.max,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "50%"}},
                "selector": {"matchLabels": labels(values, PART)},
                "template": {"metadata": {"labels": labels(values, PART)}, "spec": spec},
            },
        },
    ]
