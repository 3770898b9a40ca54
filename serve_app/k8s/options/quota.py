"""A bound on what the namespace may ask for, and defaults for containers that ask for nothing."""

from __future__ import annotations

from serve_app.k8s.pods import GPU_RESOURCE, Manifest, metadata
from serve_app.k8s.values import Values


def quota(values: Values) -> list[Manifest]:
    if (bounds := values.quota) is None:
        return []
    hard = {
        "pods": str(bounds.pods),
        "requests.cpu": str(bounds.cpus),
        "requests.memory": f"{bounds.memory_gib}Gi",
        f"requests.{GPU_RESOURCE}": str(bounds.gpus),
        # The ways in are Ingress and Gateway, which need neither.
        "services.loadbalancers": "0",
        "services.nodeports": "0",
    }
    # Under a quota a container without requests is refused.
    defaults = {"type": "Container", "defaultRequest": {"cpu": "100m", "memory": "128Mi"}, "default": {"memory": "1Gi"}}
    return [
        {"apiVersion": "v1", "kind": kind, "metadata": metadata(values, values.name, ""), "spec": spec}
        for kind, spec in (("ResourceQuota", {"hard": hard}), ("LimitRange", {"limits": [defaults]}))
    ]
