"""The rule registry, and readers of manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from serve_app.k8s.write_back import CLUSTER_FIELDS, quantity

Manifest = dict[str, Any]
Found = Iterator[tuple[Manifest, str]]
RAY_KINDS = tuple(CLUSTER_FIELDS)


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule, at `where` (kind/name)."""

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.rule}]"


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    find: Callable[[Sequence[Manifest]], Found]
    whole: bool


RULES: dict[str, Rule] = {}


def rule(
    name: str, *, whole: bool = False
) -> Callable[[Callable[[Sequence[Manifest]], Found]], Callable[[Sequence[Manifest]], Found]]:

    def register(find: Callable[[Sequence[Manifest]], Found]) -> Callable[[Sequence[Manifest]], Found]:
        RULES[name] = Rule(name, find, whole)
        return find

    return register


@dataclass(frozen=True, slots=True)
class Template:
    """A pod template. `place` is head, worker, or "" outside Ray."""

    owner: Manifest
    place: str
    metadata: Manifest
    spec: Manifest
    group: Manifest

    @property
    def containers(self) -> list[Manifest]:
        return containers(self.spec)

    @property
    def main(self) -> Manifest:
        first: Manifest = (self.spec.get("containers") or [{}])[0]
        return first

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.get("labels") or {}


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest.get("kind") in kinds)


def ray_clusters(manifests: Sequence[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """(object, its RayClusterSpec)."""
    for manifest in of_kind(manifests, *RAY_KINDS):
        spec, field = manifest.get("spec") or {}, CLUSTER_FIELDS[manifest["kind"]]
        if cluster := spec.get(field) if field else spec:
            yield manifest, cluster


def containers(spec: Manifest) -> list[Manifest]:
    """All of a pod's spec."""
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def templates(manifests: Sequence[Manifest]) -> Iterator[Template]:
    for owner, cluster in ray_clusters(manifests):
        groups = [("head", cluster.get("headGroupSpec") or {})]
        groups += [("worker", group) for group in cluster.get("workerGroupSpecs") or []]
        for place, group in groups:
            template = group.get("template") or {}
            yield Template(owner, place, template.get("metadata") or {}, template.get("spec") or {}, group)
    for owner in manifests:
        spec = owner.get("spec") or {}
        template = None
        if owner.get("kind") == "RayJob":
            template = spec.get("submitterPodTemplate")
        elif owner.get("kind") in ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job"):
            template = spec.get("template")
        elif owner.get("kind") == "CronJob":
            template = ((spec.get("jobTemplate") or {}).get("spec") or {}).get("template")
        elif owner.get("kind") == "Pod":
            template = owner
        if template:
            yield Template(owner, "", template.get("metadata") or {}, template.get("spec") or {}, {})


def serve_configs(manifests: Sequence[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """(object, Serve config document) of RayServices, and of ConfigMaps with a serve.yaml."""
    for manifest in of_kind(manifests, "RayService", "ConfigMap"):
        holder = manifest.get("spec") or manifest.get("data") or {}
        if text := holder.get("serveConfigV2") or holder.get("serve.yaml"):
            document = yaml.safe_load(text)
            yield manifest, document if isinstance(document, dict) else {}


def ingress_services(ingress: Manifest) -> Iterator[Manifest]:
    """The Services that an Ingress leads to, as its backends name them."""
    rules = ingress["spec"].get("rules") or []
    backends = [path.get("backend") for entry in rules for path in (entry.get("http") or {}).get("paths") or []]
    for backend in [ingress["spec"].get("defaultBackend"), *backends]:
        if service := (backend or {}).get("service"):
            yield service


def redis_host(cluster: Manifest) -> str:
    """Where a RayClusterSpec keeps its state; "" if nowhere."""
    address = str((cluster.get("gcsFaultToleranceOptions") or {}).get("redisAddress") or "")
    return address.rpartition("//")[2].partition(":")[0]


def deployments(document: Manifest) -> Iterator[tuple[Manifest, Manifest]]:
    """(application, deployment) of a Serve config document."""
    for application in document.get("applications") or []:
        for deployment in application.get("deployments") or []:
            yield application, deployment


def limit(container: Manifest, resource: str) -> float:
    """0 if unset. Raises ValueError for an invalid quantity."""
    return float(quantity(((container.get("resources") or {}).get("limits") or {}).get(resource, 0)))


def variables(container: Manifest) -> dict[str, Any]:
    """Environment variables; None for values from elsewhere."""
    return {entry["name"]: entry.get("value") for entry in container.get("env") or []}


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector, or a Service's plain map, matches."""
    plain = not {"matchLabels", "matchExpressions"} & set(selector)
    wanted = selector if plain else selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _matches(entry, labels) for entry in ([] if plain else selector.get("matchExpressions") or [])
    )


def _matches(entry: Manifest, labels: dict[str, str]) -> bool:
    key, values = entry["key"], entry.get("values") or []
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }.get(entry["operator"], False)


def mounted(container: Manifest, *, writable: bool = False) -> set[str]:
    """Folders with mounts."""
    return {
        mount["mountPath"] for mount in container.get("volumeMounts") or [] if not (writable and mount.get("readOnly"))
    }
