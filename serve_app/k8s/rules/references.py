"""Rules for references: every named object exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from serve_app.k8s.pods import (
    CAPACITY_NODE_LABEL,
    CLAIM_OF_OTHERS,
    CLASS_OF_CLUSTER,
    GPU_NODE_LABEL,
    GPUS_OF_NODES,
    PULL_SECRETS,
    SECRETS,
)
from serve_app.k8s.rules.manifests import (
    Found,
    Manifest,
    containers,
    ingress_services,
    of_kind,
    ray_clusters,
    redis_host,
    rule,
    selects,
    templates,
)
from serve_app.k8s.values_file.options import SECRET_KEYS

NODE_DOMAINS = ("kubernetes.io", "k8s.io", "karpenter.sh", "karpenter.k8s.aws", "amazonaws.com", "nvidia.com")
PARTS = {
    "head", "replica", "control", "population-head", "population-replica", "population-control", "population-submitter",
    "multi-node", "multi-node-worker", "multi-node-submitter", "vllm", "vllm-job", "redis", "kernels-redis",
    "kernel-evaluator", "model-download", "data-folders",
}  # fmt: skip
# A RayService's stable Services, a RayJob's head Service.
MADE_SERVICES = {"RayService": ("serve-svc", "head-svc"), "RayJob": ("head-svc",), "RayCluster": ("head-svc",)}


@rule("references", whole=True)
def references(manifests: Sequence[Manifest]) -> Found:
    have = _names(manifests)
    for template in templates(manifests):
        for kind, name in referred(template.spec):
            if name not in have[kind]:
                yield template.owner, f"there is no {kind} '{name}'"
        for name, key in _keys(template.spec, "secretKeyRef"):
            secret = next((s for s in SECRETS if name in have["Secret"] and name.endswith(f"-{s}")), None)
            if secret and (keys := _keys_of(name)) and key not in keys:
                yield template.owner, f"the Secret '{name}' has no key '{key}'"
        for name, key in _keys(template.spec, "configMapKeyRef"):
            data = {m["metadata"]["name"]: m.get("data") or {} for m in of_kind(manifests, "ConfigMap")}
            if name in data and key not in data[name]:
                yield template.owner, f"the ConfigMap '{name}' has no key '{key}'"
    for owner, kind, name in _others(manifests):
        if name not in have[kind]:
            yield owner, f"there is no {kind} '{name}'"


def _keys_of(name: str) -> tuple[str, ...]:
    """Of a Secret of ours; none where any may be there."""
    longest = max((s for s in SECRETS if name.endswith(f"-{s}")), key=len)
    return SECRET_KEYS[longest]


def _names(manifests: Sequence[Manifest]) -> dict[str, set[Any]]:
    kinds = ("ServiceAccount", "PriorityClass", "ConfigMap", "PersistentVolumeClaim", "Service", "Gateway", "Role",
             "ClusterRole", "RayCluster", "RayService", "RayJob", "Deployment", "StatefulSet")  # fmt: skip
    have = {kind: {m["metadata"]["name"] for m in of_kind(manifests, kind)} for kind in kinds}
    have["PersistentVolumeClaim"] |= given(manifests, CLAIM_OF_OTHERS)
    for kind, ends in MADE_SERVICES.items():
        have["Service"] |= {f"{name}-{end}" for name in have[kind] for end in ends}
    ours = {(m["metadata"].get("labels") or {}).get("app.kubernetes.io/instance") for m in manifests}
    have["Secret"] = {f"{name}-{secret}" for name in ours for secret in SECRETS} | given(manifests, PULL_SECRETS)
    have["StorageClass"] = {m["metadata"]["name"] for m in of_kind(manifests, "StorageClass")}
    have["StorageClass"] |= given(manifests, CLASS_OF_CLUSTER)
    have["RuntimeClass"] = {m["metadata"]["name"] for m in of_kind(manifests, "RuntimeClass")}
    return have


def given(manifests: Sequence[Manifest], annotation: str) -> set[str]:
    """Values of a service account annotation."""
    accounts = [m["metadata"].get("annotations") or {} for m in of_kind(manifests, "ServiceAccount")]
    return {value for one in accounts for value in one.get(annotation, "").split(",") if value}


def referred(spec: Manifest) -> Iterator[tuple[str, str]]:
    """(kind, name) that a pod refers to."""
    for field, kind in (("serviceAccountName", "ServiceAccount"), ("priorityClassName", "PriorityClass")):
        if name := spec.get(field):
            yield kind, name
    if name := spec.get("runtimeClassName"):
        yield "RuntimeClass", name
    for secret in spec.get("imagePullSecrets") or []:
        yield "Secret", secret["name"]
    for volume in spec.get("volumes") or []:
        for source in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
            if "secret" in source:
                yield "Secret", source["secret"].get("secretName") or source["secret"].get("name")
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        for name, _ in _keys(spec, field):
            yield kind, name
    for container in containers(spec):
        for source in container.get("envFrom") or []:
            for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                if field in source:
                    yield kind, source[field]["name"]


def _keys(spec: Manifest, field: str) -> Iterator[tuple[str, str]]:
    """(name, key) that variables come from."""
    for container in containers(spec):
        for entry in container.get("env") or []:
            if source := (entry.get("valueFrom") or {}).get(field):
                yield source["name"], source["key"]


def _others(manifests: Sequence[Manifest]) -> Iterator[tuple[Manifest, str, str]]:
    """(object, kind, name) that objects without pods refer to."""
    for ingress in of_kind(manifests, "Ingress"):
        for service in ingress_services(ingress):
            yield ingress, "Service", service["name"]
    for route in of_kind(manifests, "HTTPRoute"):
        for parent in route["spec"].get("parentRefs") or []:
            yield route, "Gateway", parent["name"]
        for entry in route["spec"].get("rules") or []:
            for backend in entry.get("backendRefs") or []:
                yield route, backend.get("kind", "Service"), backend["name"]
    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        if name := claim["spec"].get("storageClassName"):
            yield claim, "StorageClass", name
    for owner in of_kind(manifests, "StatefulSet"):
        if name := owner["spec"].get("serviceName"):
            yield owner, "Service", name
    for binding in of_kind(manifests, "RoleBinding", "ClusterRoleBinding"):
        for subject in binding.get("subjects") or []:
            if subject.get("kind") == "ServiceAccount":
                yield binding, "ServiceAccount", subject["name"]
    for job in of_kind(manifests, "RayJob"):
        if name := (job["spec"].get("clusterSelector") or {}).get("ray.io/cluster"):
            yield job, "RayCluster", name
    for owner, cluster in ray_clusters(manifests):
        autoscaler = {"containers": [{**(cluster.get("autoscalerOptions") or {}), "name": "autoscaler"}]}
        yield from ((owner, kind, name) for kind, name in referred(autoscaler))
        if (host := redis_host(cluster)) and "." not in host:  # otherwise outside the namespace
            yield owner, "Service", host


@rule("ports", whole=True)
def ports(manifests: Sequence[Manifest]) -> Found:
    """Ports by name or number: of Ingresses, monitors and probes."""
    every = list(templates(manifests))
    for template in every:
        for container in template.containers:
            names = {port.get("name") for port in container.get("ports") or []}
            for field in ("livenessProbe", "readinessProbe", "startupProbe"):
                for action in ("httpGet", "tcpSocket"):
                    port = ((container.get(field) or {}).get(action) or {}).get("port")
                    if isinstance(port, str) and port not in names:
                        yield template.owner, f"{container['name']}: {field} asks port '{port}', and it has none"
    for monitor in of_kind(manifests, "PodMonitor"):
        chosen = [t for t in every if selects(monitor["spec"].get("selector") or {}, t.labels)]
        if not chosen:
            yield monitor, "selects no pod that is here"
        names = {port.get("name") for t in chosen for c in t.containers for port in c.get("ports") or []}
        for endpoint in monitor["spec"].get("podMetricsEndpoints") or []:
            if chosen and endpoint.get("port") not in names:
                yield monitor, f"no pod that it selects has a port '{endpoint.get('port')}'"
    services = list(of_kind(manifests, "Service"))
    for monitor in of_kind(manifests, "ServiceMonitor"):
        selector = monitor["spec"].get("selector") or {}
        asked = [m for m in services if selects(selector, m["metadata"].get("labels") or {})]
        if not asked:
            yield monitor, "selects no Service that is here"
        names = {port.get("name") for m in asked for port in m["spec"].get("ports") or []}
        for endpoint in monitor["spec"].get("endpoints") or []:
            if asked and endpoint.get("port") not in names:
                yield monitor, f"no Service that it selects has a port '{endpoint.get('port')}'"
    for ingress in of_kind(manifests, "Ingress"):
        for service in ingress_services(ingress):
            if service["name"].endswith("-serve-svc") and (service.get("port") or {}).get("number") != 8000:
                yield ingress, f"the Service '{service['name']}' has the port 8000 alone"


@rule("nodes", whole=True)
def nodes(manifests: Sequence[Manifest]) -> Found:
    """Node labels that some node pool sets."""
    known = {GPU_NODE_LABEL: given(manifests, GPUS_OF_NODES), CAPACITY_NODE_LABEL: {"on-demand", "spot"}}
    for template in templates(manifests):
        for key, values in _node_labels(template.spec):
            if key in known:
                if values and not known[key] & set(values):
                    there = ", ".join(sorted(known[key]))
                    yield template.owner, f"no node has {key}: {', '.join(values)}; there are {there}"
            elif not key.partition("/")[0].endswith(NODE_DOMAINS) or "/" not in key:
                yield template.owner, f"no node pool gives its nodes a label '{key}'"
        if (scheduler := template.spec.get("schedulerName", "default-scheduler")) != "default-scheduler":
            yield template.owner, f"there is no scheduler '{scheduler}' here, so its pods stay pending"
        affinity = (template.spec.get("affinity") or {}).get("podAffinity") or {}
        for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or []:
            selector = term.get("labelSelector") or {}
            if not any(selects(selector, other.labels) for other in templates(manifests)):
                yield template.owner, "its podAffinity wants to be beside a pod that is not here"


def _node_labels(spec: Manifest) -> Iterator[tuple[str, list[str]]]:
    """(key, values) that a node must have; no values if any will do."""
    for key, value in (spec.get("nodeSelector") or {}).items():
        yield key, [value]
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or []:
        for entry in term.get("matchExpressions") or []:
            if entry["operator"] in ("In", "Exists"):
                yield entry["key"], entry.get("values") or []


@rule("parts")
def parts(manifests: Sequence[Manifest]) -> Found:
    """A policy or monitor of a part without pods has no effect and no error."""
    for policy in of_kind(manifests, "NetworkPolicy", "PodMonitor"):
        for value in _part_values(policy["spec"]):
            if value not in PARTS:
                yield policy, f"no pod plays the part '{value}'"


def _part_values(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for one in node:
            yield from _part_values(one)
    elif isinstance(node, dict):
        if node.get("key") == "serve-app/part":
            yield from node.get("values") or []
        if isinstance(part := node.get("serve-app/part"), str):
            yield part
        for one in node.values():
            yield from _part_values(one)
