"""Settings common to all pods: user, writable mounts, placement and grace period."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from serve_app.k8s.serve_config import KEY_FILE
from serve_app.k8s.values import DATA, MODELS, Preset, Values
from serve_app.k8s.values_file.options import SECRET_KEYS

Manifest = dict[str, Any]

# Suffixes of Secret names (k8s/README.md says who creates them).
KEYS_SECRET, REDIS_SECRET, HUB_SECRET, VLLM_SECRET, KERNELS_REDIS = "keys", "redis", "hub", "vllm", "kernels-redis"
PROVIDERS_SECRET = "providers"
SECRETS = tuple(SECRET_KEYS)
# From installation/templates.
HEAD_ACCOUNT, WORKER_ACCOUNT, STORE_ACCOUNT = "head", "worker", "store"
ONLINE, POPULATION = "online", "population"
# Service account annotations that describe what the installation does not make: claim, GPU types, Pod Security level,
# StorageClass, pull secrets.
CLAIM_OF_OTHERS = "serve-app/claim"
GPUS_OF_NODES = "serve-app/gpus"
LEVEL_OF_OTHERS = "serve-app/pod-security"
CLASS_OF_CLUSTER = "serve-app/storage-class"
PULL_SECRETS = "serve-app/pull-secrets"
# Pod annotations: reasons for exceptions to the rules.
ROOT_REASON, CAPABILITIES_REASON = "serve-app/root-because", "serve-app/capabilities-because"
USER = 1000  # `serve` in cluster/Dockerfile
HOME = "/home/serve"
GPU_RESOURCE = "nvidia.com/gpu"
# Set by cluster/eks/node-pools.yaml.
GPU_NODE_LABEL, CAPACITY_NODE_LABEL = "serve-app/gpu", "serve-app/capacity"
# The grace period beyond the drain, for preStop and shutdown.
GRACE_MARGIN_S = 60


def metadata(values: Values, name: str, part: str, **annotations: str) -> Manifest:
    """An object's metadata. NetworkPolicies and monitors select by the part."""
    found: Manifest = {"name": name, "namespace": values.namespace, "labels": labels(values, part)}
    return {**found, "annotations": annotations} if annotations else found


def labels(values: Values, part: str = "") -> dict[str, str]:
    """Labels of objects and pods. Selectors use all of them, since a namespace may have several installations."""
    found = {"app.kubernetes.io/part-of": "serve-app", "app.kubernetes.io/instance": values.name}
    return {**found, "serve-app/part": part} if part else found


def container(
    values: Values,
    preset: Preset,
    name: str,
    *,
    resources: Manifest,
    mounts: tuple[Manifest, ...] = (),
    environment: dict[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    """A serving-image container. Only /tmp, the home folder and `mounts` are writable."""
    return {
        "name": name,
        "image": values.image(preset),
        "imagePullPolicy": "IfNotPresent",
        **({"env": [{"name": key, "value": value} for key, value in environment.items()]} if environment else {}),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [*scratch_mounts(), *mounts],
        **fields,
    }


def scratch_mounts() -> list[Manifest]:
    """Mounts for Ray's session and vLLM's and PyTorch's caches."""
    return [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME}]


def pod(
    values: Values,
    containers: list[Manifest],
    *,
    account: str,
    priority: str,
    volumes: tuple[Manifest, ...] = (),
    **fields: Any,
) -> Manifest:
    """A pod's spec: non-root, without a service account token by default, with time to drain."""
    return {
        "serviceAccountName": values.named(account),
        "automountServiceAccountToken": False,
        # Otherwise a Service named vllm sets VLLM_PORT to a URL.
        "enableServiceLinks": False,
        "priorityClassName": values.cluster_named(priority),
        "terminationGracePeriodSeconds": values.drain_s + GRACE_MARGIN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"imagePullSecrets": pull_secrets(values)} if values.images.pull_secrets else {}),
        "containers": containers,
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}, *volumes],
        **fields,
    }


def pull_secrets(values: Values) -> list[Manifest]:
    return [{"name": name} for name in values.images.pull_secrets]


def secret_variable(values: Values, name: str, secret: str, key: str, **fields: bool) -> Manifest:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": values.named(secret), "key": key, **fields}}}


def provider_keys(values: Values) -> list[Manifest]:
    """`envFrom` of the driver's pods: keys of external providers, if there are any."""
    return [{"secretRef": {"name": values.named(PROVIDERS_SECRET), "optional": True}}]


def same_resources(cpus: int, memory_gib: int, **more: int) -> Manifest:
    """Requests equal limits (QoS class Guaranteed), so memory pressure never evicts a replica."""
    amounts = {"cpu": str(cpus), "memory": f"{memory_gib}Gi", **{name: str(amount) for name, amount in more.items()}}
    return {"requests": amounts, "limits": dict(amounts)}


def burstable_resources(cpus: int, memory_gib: int) -> Manifest:
    """Requests a quarter of the cores, since a laptop shares them."""
    limits = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    return {"requests": {**limits, "cpu": f"{250 * cpus}m"}, "limits": limits}


def gpu_resources(values: Values, preset: Preset, gpus: int) -> Manifest:
    gpu = values.gpus[preset.gpu or ""]
    return same_resources(gpu.cpus * gpus, gpu.pod_memory_gib * gpus, **{GPU_RESOURCE: gpus})


def gpu_placement(preset: Preset, capacity: str) -> Manifest:
    """`capacity` is on-demand or spot."""
    return {
        "nodeSelector": {GPU_NODE_LABEL: preset.gpu, CAPACITY_NODE_LABEL: capacity},
        "tolerations": [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}],
    }


def spread(labels: dict[str, str]) -> list[Manifest]:
    """Prefers different zones and nodes; a pending replica is worse than two on one node."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def keys_volume(values: Values) -> tuple[Manifest, Manifest]:
    """(volume, mount) of the API keys. A folder, since subPath mounts never follow the secret."""
    folder = KEY_FILE.rpartition("/")[0]
    return (
        {"name": "keys", "secret": {"secretName": values.named(KEYS_SECRET)}},
        {"name": "keys", "mountPath": folder, "readOnly": True},
    )


def data_volume(values: Values, *, writable: str = "") -> tuple[Manifest, tuple[Manifest, ...]]:
    """(volume, mounts) of the shared file system, weights read-only; empty without a volume.

    `writable` is DATA or a folder in it.
    """
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": values.claim}}
    if writable == DATA:
        return volume, ({"name": "data", "mountPath": DATA},)
    models = {"name": "data", "mountPath": MODELS, "subPath": "models", "readOnly": True}
    if not PurePosixPath(writable).is_relative_to(DATA):
        return volume, (models,)
    sub_path = str(PurePosixPath(writable).relative_to(DATA))
    return volume, (models, {"name": "data", "mountPath": writable, "subPath": sub_path})


def shm_volume(memory_gib: int) -> tuple[Manifest, Manifest]:
    """(volume, mount) of /dev/shm for ranks. KubeRay adds it to Ray's pods only."""
    return (
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{memory_gib}Gi"}},
        {"name": "shm", "mountPath": "/dev/shm"},
    )
