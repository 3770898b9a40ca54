"""What all our pods have in common: who they run as, what they may write, where they go, how long they take to go."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from serve_app.k8s.serve_config import KEY_FILE
from serve_app.k8s.values import DATA, MODELS, Preset, Values

Manifest = dict[str, Any]

# Secrets by part of their name, made by cluster/up.sh or by hand (k8s/README.md); manifests only name them.
KEYS_SECRET, REDIS_SECRET, HUB_SECRET, VLLM_SECRET, KERNELS_REDIS = "keys", "redis", "hub", "vllm", "kernels-redis"
SECRETS = (KEYS_SECRET, REDIS_SECRET, HUB_SECRET, VLLM_SECRET, KERNELS_REDIS)
# Service accounts and priorities of the base (installation/templates).
HEAD_ACCOUNT, WORKER_ACCOUNT, STORE_ACCOUNT = "head", "worker", "store"
ONLINE, POPULATION = "online", "population"
# Annotation of service accounts: a claim that their pods mount and that is not made here.
CLAIM_OF_OTHERS = "serve-app/claim"
# And the GPU types that nodes of this installation have.
GPUS_OF_NODES = "serve-app/gpus"
# And the Pod Security level of a namespace that somebody else makes.
LEVEL_OF_OTHERS = "serve-app/pod-security"
# And the StorageClass of its claim.
CLASS_OF_CLUSTER = "serve-app/storage-class"
# And Secrets that images are pulled with.
PULL_SECRETS = "serve-app/pull-secrets"
# Annotations of pods that do what others may not.
ROOT_REASON, CAPABILITIES_REASON = "serve-app/root-because", "serve-app/capabilities-because"
USER = 1000  # `serve` in cluster/Dockerfile
HOME = "/home/serve"
GPU_RESOURCE = "nvidia.com/gpu"
# Set by cluster/eks/node-pools.yaml, whoever provisions the nodes.
GPU_NODE_LABEL, CAPACITY_NODE_LABEL = "serve-app/gpu", "serve-app/capacity"
# preStop and what ends after it fit into the grace period beside the drain itself.
GRACE_MARGIN_S = 60


def metadata(values: Values, name: str, part: str, **annotations: str) -> Manifest:
    """Of an object: our name and the part it plays, which NetworkPolicies and monitors select by."""
    found: Manifest = {"name": name, "namespace": values.namespace, "labels": labels(values, part)}
    return {**found, "annotations": annotations} if annotations else found


def labels(values: Values, part: str = "") -> dict[str, str]:
    """Of objects and pods: whose they are, and which part. Selectors have all, as a namespace may have several."""
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
    """One of the serving image. Only /tmp, the home folder and `mounts` can be written."""
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
    """Ray's session, vLLM's and PyTorch's caches."""
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
    """A pod's spec: non-root, without a token unless a field says otherwise, and slow enough to drain."""
    return {
        "serviceAccountName": values.named(account),
        "automountServiceAccountToken": False,
        # A Service named vllm would else set VLLM_PORT to a URL.
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
    """An environment variable whose value is in one of our Secrets."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": values.named(secret), "key": key, **fields}}}


def same_resources(cpus: int, memory_gib: int, **more: int) -> Manifest:
    """Requests equal to limits: guaranteed, so that memory pressure of others never evicts a replica."""
    amounts = {"cpu": str(cpus), "memory": f"{memory_gib}Gi", **{name: str(amount) for name, amount in more.items()}}
    return {"requests": amounts, "limits": dict(amounts)}


def burstable_resources(cpus: int, memory_gib: int) -> Manifest:
    """Limits as named, requests of a quarter of the cores: on a laptop they are shared with all else."""
    limits = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    return {"requests": {**limits, "cpu": f"{250 * cpus}m"}, "limits": limits}


def gpu_resources(values: Values, preset: Preset, gpus: int) -> Manifest:
    """Of a pod with so many of the preset's GPUs."""
    gpu = values.gpus[preset.gpu or ""]
    return same_resources(gpu.cpus * gpus, gpu.pod_memory_gib * gpus, **{GPU_RESOURCE: gpus})


def gpu_placement(preset: Preset, capacity: str) -> Manifest:
    """On nodes of the preset's GPU; `capacity` is on-demand or spot."""
    return {
        "nodeSelector": {GPU_NODE_LABEL: preset.gpu, CAPACITY_NODE_LABEL: capacity},
        "tolerations": [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}],
    }


def spread(labels: dict[str, str]) -> list[Manifest]:
    """Over zones and nodes if it can be, since a pending replica is worse than two beside each other."""
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
    """(volume, mount) of the API keys. Mounted as a folder: a file by subPath would never follow the secret."""
    folder = KEY_FILE.rpartition("/")[0]
    return (
        {"name": "keys", "secret": {"secretName": values.named(KEYS_SECRET)}},
        {"name": "keys", "mountPath": folder, "readOnly": True},
    )


def data_volume(values: Values, *, writable: str = "") -> tuple[Manifest, tuple[Manifest, ...]]:
    """(volume, mounts) of the shared file system: the weights read-only, and what of it may be written.

    `writable` is DATA for all of it, or a folder in it; what is on no volume needs none.
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
    """(volume, mount) of /dev/shm, where ranks meet. KubeRay adds its own to Ray's pods, to others nobody does."""
    return (
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{memory_gib}Gi"}},
        {"name": "shm", "mountPath": "/dev/shm"},
    )
