"""Karpenter node pools: on-demand and spot for each GPU type, and one of CPUs.

Karpenter and EKS Auto Mode name instance properties differently; the labels defined here are the same under both.
"""

from __future__ import annotations

from serve_app.k8s.pods import CAPACITY_NODE_LABEL, GPU_NODE_LABEL, GPU_RESOURCE, Manifest
from serve_app.k8s.values import Gpu, Values

# (prefix of instance labels, node class) of each provisioner.
KARPENTER = ("karpenter.k8s.aws", {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"})
AUTO_MODE = ("eks.amazonaws.com", {"group": "eks.amazonaws.com", "kind": "NodeClass", "name": "gpu"})
# Cost limits: GPUs of one GPU pool, cores of the CPU pool.
MAX_GPUS, MAX_CPUS = 64, 128
# EC2. During an upgrade the second head and control pod need 8 cores and 26 GiB.
CPU_FAMILIES = ("m7i", "m7i-flex", "m6i")


def node_pools(values: Values, *, auto_mode: bool = False) -> list[Manifest]:
    """Two NodePools for each GPU type, and a CPU pool unless EKS Auto Mode has its own (general-purpose)."""
    pools = [
        node_pool(name, gpu, capacity, auto_mode=auto_mode)
        for name, gpu in values.gpus.items()
        for capacity in ("on-demand", "spot")
    ]
    return pools if auto_mode else [*pools, cpu_pool()]


def cpu_pool() -> Manifest:
    """On-demand, for heads and drivers. Without a taint, so other pods may use it."""
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": "cpu-on-demand", "labels": {"app.kubernetes.io/part-of": "serve-app"}},
        "spec": {
            "template": {
                "metadata": {"labels": {CAPACITY_NODE_LABEL: "on-demand"}},
                "spec": {
                    "nodeClassRef": KARPENTER[1],
                    "requirements": [
                        _requirement(f"{KARPENTER[0]}/instance-family", *CPU_FAMILIES),
                        _requirement(f"{KARPENTER[0]}/instance-size", "2xlarge", "4xlarge"),
                        _requirement("karpenter.sh/capacity-type", "on-demand"),
                        _requirement("kubernetes.io/arch", "amd64"),
                    ],
                    "expireAfter": "336h",
                    "terminationGracePeriod": "1h",
                },
            },
            "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "5m", "budgets": [{"nodes": "1"}]},
            "limits": {"cpu": str(MAX_CPUS)},
        },
    }


def node_pool(name: str, gpu: Gpu, capacity: str, *, auto_mode: bool) -> Manifest:
    """`capacity` is on-demand or spot."""
    prefix, node_class = AUTO_MODE if auto_mode else KARPENTER
    spot = capacity == "spot"
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": f"{name}-{capacity}", "labels": {"app.kubernetes.io/part-of": "serve-app"}},
        "spec": {
            "template": {
                "metadata": {"labels": {GPU_NODE_LABEL: name, CAPACITY_NODE_LABEL: capacity}},
                "spec": {
                    "nodeClassRef": node_class,
                    "taints": [{"key": GPU_RESOURCE, "value": "true", "effect": "NoSchedule"}],
                    "requirements": [
                        _requirement(f"{prefix}/instance-family", *gpu.instance_families),
                        # Populations prefer spot and fall back to on-demand.
                        _requirement(
                            "karpenter.sh/capacity-type", *(("spot", "on-demand") if spot else ("on-demand",))
                        ),
                        _requirement("kubernetes.io/arch", "amd64"),
                    ],
                    "expireAfter": "336h",
                    "terminationGracePeriod": "1h",  # longer than any drain
                },
            },
            "disruption": {
                # Only empty nodes: a moved replica loses its prefix cache.
                "consolidationPolicy": "WhenEmpty",
                "consolidateAfter": "5m",
                "budgets": [{"nodes": "1"}],
            },
            "limits": {GPU_RESOURCE: str(MAX_GPUS)},
        },
    }


def _requirement(key: str, *values: str) -> Manifest:
    return {"key": key, "operator": "In", "values": list(values)}
