"""The server: a RayService, and a budget that lets nodes be drained one replica at a time."""

from __future__ import annotations

from typing import Any

import yaml

from serve_app.k8s.pods import Manifest, labels, metadata
from serve_app.k8s.ray_cluster import REPLICA, ray_cluster
from serve_app.k8s.serve_config import REPLICA_WAIT_S, serve_config
from serve_app.k8s.values import Preset, Values


def ray_service(values: Values, preset: Preset) -> list[Manifest]:
    """RayService and PodDisruptionBudget."""
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(values, values.name, "server", **{"ray.io/initializing-timeout": f"{REPLICA_WAIT_S}s"}),
        "spec": {
            "serveConfigV2": yaml_text(serve_config(values, preset)),
            # NewCluster needs the same nodes once more, which come where nodes are bought. Where they do not, an
            # upgrade is a deletion, which is at least no upgrade that hangs.
            "upgradeStrategy": {"type": "NewCluster" if preset.gpu else "None"},
            "rayClusterDeletionDelaySeconds": values.drain_s,  # the old cluster's open streams
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": ray_cluster(values, preset),
        },
    }
    return [service, *disruption_budget(values, preset)]


def disruption_budget(values: Values, preset: Preset) -> list[Manifest]:
    """All but one online replica stay. An integer: what is relative needs a scale that Ray's pods have not."""
    stay = preset.replicas.min - 1
    if preset.gpu is None or stay < 1:
        return []  # for a single pod it would block the drain for ever
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
    """YAML in the order given."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
