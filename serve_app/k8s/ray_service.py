"""The server: a RayService and its PodDisruptionBudget."""

from __future__ import annotations

from typing import Any

import yaml

from serve_app.k8s.pods import Manifest, labels, metadata
from serve_app.k8s.ray_cluster import REPLICA, ray_cluster
from serve_app.k8s.serve_config import REPLICA_WAIT_S, serve_config
from serve_app.k8s.values import Preset, Values


def ray_service(values: Values, preset: Preset) -> list[Manifest]:
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(values, values.name, "server", **{"ray.io/initializing-timeout": f"{REPLICA_WAIT_S}s"}),
        "spec": {
            "serveConfigV2": yaml_text(serve_config(values, preset)),
            # NewCluster needs twice the nodes. Where no nodes can be bought the upgrade would hang, so the user deletes
            # the old cluster.
            "upgradeStrategy": {"type": "NewCluster" if preset.gpu else "None"},
            "rayClusterDeletionDelaySeconds": values.drain_s,  # old cluster's open streams
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": ray_cluster(values, preset),
        },
    }
    return [service, *disruption_budget(values, preset)]


def disruption_budget(values: Values, preset: Preset) -> list[Manifest]:
    """One online replica may be evicted. An integer: percentages need a scale subresource, which Ray's pods lack."""
    stay = preset.replicas.min - 1
    if preset.gpu is None or stay < 1:
        return []  # would block a single pod's drain forever
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(values, values.named("replicas"), REPLICA),
            "spec": {
                "minAvailable": stay,
                "selector": {"matchLabels": labels(values, REPLICA)},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
    ]


def yaml_text(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
