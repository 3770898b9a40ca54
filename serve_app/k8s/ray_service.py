"""The server: a RayService, and a budget that lets nodes be drained one replica at a time."""

from __future__ import annotations

from typing import Any

import yaml

from serve_app.k8s.pods import ONLINE_PRIORITY, Manifest, labels, metadata
from serve_app.k8s.ray_cluster import REPLICA, ray_cluster
from serve_app.k8s.serve_config import REPLICA_WAIT_S, serve_config
from serve_app.k8s.values import Preset, Values

NAME = "serve-app"  # at most 47 characters; the operator adds its own to it


def ray_service(values: Values, preset: Preset) -> list[Manifest]:
    """RayService and PodDisruptionBudget."""
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(values, NAME, "server", **{"ray.io/initializing-timeout": f"{REPLICA_WAIT_S}s"}),
        "spec": {
            "serveConfigV2": yaml_text(serve_config(values, preset)),
            # NewCluster needs the same nodes once more, which come where nodes are bought. Where they do not, an
            # upgrade is a deletion, which is at least no upgrade that hangs.
            "upgradeStrategy": {"type": "NewCluster" if preset.gpu else "None"},
            "rayClusterDeletionDelaySeconds": values.drain_s,  # the old cluster's open streams
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": ray_cluster(values, preset, priority=ONLINE_PRIORITY),
        },
    }
    return [service, *disruption_budget(values, preset)]


def disruption_budget(values: Values, preset: Preset) -> list[Manifest]:
    """All but one replica stay. An integer: percentages and maxUnavailable need a scale that Ray's pods have not."""
    stay = preset.replicas.min - 1
    if preset.gpu is None or stay < 1:
        return []  # for a single pod it would block the drain for ever
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(values, f"{NAME}-replicas", REPLICA),
            "spec": {
                "minAvailable": stay,
                "selector": {"matchLabels": labels(REPLICA)},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
    ]


def yaml_text(document: Any) -> str:
    """YAML in the order given."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
