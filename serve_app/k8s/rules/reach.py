"""Rules for NetworkPolicies: required paths are open in both directions, and no others.

A pod that no policy selects is open; others accept what any rule allows.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_app.k8s.rules.manifests import (
    Found,
    Manifest,
    Template,
    of_kind,
    ray_clusters,
    redis_host,
    rule,
    selects,
    templates,
    variables,
)

Policies = Sequence[Manifest]
ANY_PORT = 23456  # for Ray's dynamic ports
DNS = "kube-system"
LOAD_BALANCER, API_SERVER, INTERNET = "10.0.7.7", "10.100.0.1", "52.94.133.131"
METADATA = "169.254.169.254"  # the node role's credentials
# Parts that need the internet.
OUTWARD = ("control", "population-control", "model-download")
HTTP, DASHBOARD, METRICS, GCS, REDIS = 8000, 8265, 8080, 6379, 6379


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod, by its own and its namespace's labels, or an outside address."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = ""
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def pod_peer(template: Template, manifests: Sequence[Manifest]) -> Peer:
    """A pod of a template. KubeRay adds the node type."""
    space = template.owner.get("metadata", {}).get("namespace") or ""
    named = {m["metadata"]["name"]: m["metadata"].get("labels") or {} for m in of_kind(manifests, "Namespace")}
    own = {**named.get(space, {"app.kubernetes.io/part-of": "serve-app"}), "kubernetes.io/metadata.name": space}
    added = {"ray.io/node-type": template.place} if template.place else {}
    return Peer({**template.labels, **(template.group.get("labels") or {}), **added}, space, own)


def in_namespace(name: str) -> Peer:
    """A pod of another namespace."""
    return Peer({}, name, {"kubernetes.io/metadata.name": name})


def lets(policies: Policies, one: Peer, direction: str, other: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether `one` may receive from `other` (ingress), or send to it (egress)."""
    chosen = [policy for policy in policies if _is_of(policy, one) and direction in _types(policy)]
    key = "from" if direction == "Ingress" else "to"
    return not chosen or any(
        _has_port(entry, port, protocol) and _has_peer(entry.get(key), other, one)
        for policy in chosen
        for entry in policy["spec"].get(direction.lower()) or []
    )


def reaches(policies: Policies, source: Peer, target: Peer, port: int) -> bool:
    return lets(policies, source, "Egress", target, port) and lets(policies, target, "Ingress", source, port)


def _is_of(policy: Manifest, peer: Peer) -> bool:
    same = not peer.namespace or policy["metadata"].get("namespace", peer.namespace) == peer.namespace
    return same and selects(policy["spec"].get("podSelector") or {"matchLabels": {}}, peer.labels)


def _types(policy: Manifest) -> list[str]:
    spec = policy["spec"]
    return list(spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])])


def _has_port(entry: Manifest, port: int, protocol: str) -> bool:
    ports = entry.get("ports") or []
    return not ports or any(
        one.get("protocol", "TCP") == protocol
        and ("port" not in one or one["port"] == port or one["port"] <= port <= one.get("endPort", -1))
        for one in ports
        if not isinstance(one.get("port"), str)
    )


def _has_peer(peers: list[Manifest] | None, other: Peer, of: Peer) -> bool:
    if not peers:
        return True
    for peer in peers:
        if block := peer.get("ipBlock"):
            if other.address and _in_block(other.address, block):
                return True
        elif not other.address:
            spaces = peer.get("namespaceSelector")
            here = other.namespace == of.namespace if spaces is None else _takes(spaces, other.namespace_labels)
            if here and _takes(peer.get("podSelector") or {}, other.labels):
                return True
    return False


def _takes(selector: Manifest, labels: dict[str, str]) -> bool:
    return selects(selector or {"matchLabels": {}}, labels)


def _in_block(address: str, block: Manifest) -> bool:
    ip = ipaddress.ip_address(address)
    try:
        inside = ip in ipaddress.ip_network(block["cidr"])
        return inside and not any(ip in ipaddress.ip_network(one) for one in block.get("except") or [])
    except ValueError:  # rule `cidr`
        return True


def _namespaces(policies: Policies) -> set[str]:
    found = {"default"}
    for policy in policies:
        for entry in policy["spec"].get("ingress") or []:
            for peer in entry.get("from") or []:
                labels = (peer.get("namespaceSelector") or {}).get("matchLabels") or {}
                found |= {labels[key] for key in labels if key == "kubernetes.io/metadata.name"}
    return found - {DNS}


def _part(template: Template) -> str:
    return template.labels.get("serve-app/part") or template.place or str(template.owner.get("kind"))


@rule("default-deny", whole=True)
def default_deny(manifests: Sequence[Manifest]) -> Found:
    for namespace in of_kind(manifests, "Namespace"):
        closed = [
            policy
            for policy in of_kind(manifests, "NetworkPolicy")
            if not policy["spec"].get("podSelector")
            and set(policy["spec"].get("policyTypes") or []) == {"Ingress", "Egress"}
            and not policy["spec"].get("ingress")
        ]
        if not closed:
            yield namespace, "no NetworkPolicy closes everything first"


@rule("allowed-ways", whole=True)
def allowed_ways(manifests: Sequence[Manifest]) -> Found:
    """Paths that must be open (pitfall 11)."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    if not policies:
        return
    seen: set[tuple[Any, ...]] = set()
    for owner, part, message in _missing(manifests, policies):
        if (key := (id(owner), part, message)) not in seen:
            seen.add(key)
            yield owner, message


def _missing(manifests: Sequence[Manifest], policies: Policies) -> Iterator[tuple[Manifest, str, str]]:
    every = list(templates(manifests))
    for template in every:
        for protocol in ("UDP", "TCP"):
            if not lets(policies, pod_peer(template, manifests), "Egress", in_namespace(DNS), 53, protocol):
                yield template.owner, _part(template), f"{_part(template)} cannot ask for names (DNS, 53/{protocol})"
    for owner, cluster in ray_clusters(manifests):
        pods = [t for t in every if t.owner is owner]
        yield from _of_cluster(owner, pods, cluster, manifests, policies)
        yield from _of_redis(owner, pods, cluster, manifests, policies)
    for template in every:
        peer, part = pod_peer(template, manifests), _part(template)
        if part in OUTWARD and not lets(policies, peer, "Egress", Peer(address=INTERNET), 443):
            yield template.owner, part, f"{part} cannot reach hub and store (443)"
        asked = part in ("vllm", "vllm-job", "multi-node")
        if asked and not lets(policies, peer, "Ingress", Peer(address=LOAD_BALANCER), HTTP):
            yield template.owner, part, f"no NetworkPolicy lets anybody reach port {HTTP} of {part}: clients must"
        if part == "kernel-evaluator":
            queues = [pod_peer(t, manifests) for t in every if _part(t) == "kernels-redis"]
            if not any(reaches(policies, peer, queue, REDIS) for queue in queues):
                yield template.owner, part, f"{part} cannot reach its queue"


def _of_cluster(
    owner: Manifest, pods: list[Template], cluster: Manifest, manifests: Sequence[Manifest], policies: Policies
) -> Iterator[tuple[Manifest, str, str]]:
    """Ray's paths: operator, metrics, clients, API server, its own processes."""
    others = [
        in_namespace(name) for name in sorted(_namespaces(policies))
    ]  # operator and Prometheus are in some of them
    for template in pods:
        peer, part = pod_peer(template, manifests), _part(template)
        callers = [(others, DASHBOARD, "the operator")] if template.place == "head" else []
        if template.place:
            callers.append((others, METRICS, "Prometheus"))
        if template.place == "worker" and owner["kind"] == "RayService":
            callers.append(([Peer(address=LOAD_BALANCER)], HTTP, "a load balancer"))
        for some, port, who in callers:
            if not any(lets(policies, peer, "Ingress", caller, port) for caller in some):
                yield owner, part, f"no NetworkPolicy lets anybody reach port {port} of {part}: {who} must"
        if template.place == "head" and cluster.get("enableInTreeAutoscaling"):
            ports = (443, 6443)
            if not any(lets(policies, peer, "Egress", Peer(address=API_SERVER), port) for port in ports):
                yield owner, part, f"{part}: its autoscaler cannot reach the API server"
        for other in pods:
            if other is template and template.place == "head":
                continue
            target, name = pod_peer(other, manifests), _part(other)
            for port in (GCS, DASHBOARD, 10001, ANY_PORT) if other.place == "head" else (ANY_PORT,):
                if not lets(policies, target, "Ingress", peer, port):
                    what = "Ray's own ports" if port == ANY_PORT else f"port {port}"
                    yield owner, part, f"no NetworkPolicy lets anybody reach {what} of {name}: {part} must"
                if not lets(policies, peer, "Egress", target, port):
                    yield owner, part, f"{part} may not reach {'others of Ray' if port == ANY_PORT else port} ({name})"


def _of_redis(
    owner: Manifest, pods: list[Template], cluster: Manifest, manifests: Sequence[Manifest], policies: Policies
) -> Iterator[tuple[Manifest, str, str]]:
    """From the head to its Redis."""
    host = redis_host(cluster)
    for service in of_kind(manifests, "Service"):
        if service["metadata"]["name"] != host:
            continue
        for target in templates(manifests):
            if target.owner["kind"] == "StatefulSet" and selects(service["spec"]["selector"], target.labels):
                there = pod_peer(target, manifests)
                for head in (t for t in pods if t.place == "head"):
                    here = pod_peer(head, manifests)
                    if not lets(policies, there, "Ingress", here, REDIS):
                        yield target.owner, "redis", f"no NetworkPolicy lets anybody reach port {REDIS} of redis"
                    if not lets(policies, here, "Egress", there, REDIS):
                        yield owner, "redis", f"{_part(head)} may not reach redis ({REDIS})"


@rule("shut-ways", whole=True)
def shut_ways(manifests: Sequence[Manifest]) -> Found:
    """Paths that must be closed."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    if not policies:
        return
    for template in templates(manifests):
        peer, part = pod_peer(template, manifests), _part(template)
        if lets(policies, peer, "Egress", Peer(address=METADATA), 80):
            yield template.owner, f"{part} reaches its node's metadata, and with it the node's role"
        if part not in OUTWARD and lets(policies, peer, "Egress", Peer(address=INTERNET), 443):
            what = "runs what a model wrote, and " if part == "kernel-evaluator" else ""
            yield template.owner, f"{part} {what}reaches the internet"
        if part == "kernel-evaluator":
            head = Peer({**peer.labels, "serve-app/part": "head"}, peer.namespace, peer.namespace_labels)
            if lets(policies, peer, "Egress", head, DASHBOARD):
                yield template.owner, f"{part} runs what a model wrote, and reaches Ray"
        if part.startswith("population-") and lets(policies, peer, "Ingress", Peer(address=LOAD_BALANCER), HTTP):
            yield template.owner, f"{part} has no keys, and anybody in the network reaches its port {HTTP}"
        if part.startswith("redis") and lets(policies, peer, "Ingress", Peer(address=LOAD_BALANCER), REDIS):
            yield template.owner, f"{part} can be reached from the whole network"


@rule("cleanup-reaches-redis", whole=True)
def cleanup_reaches_redis(manifests: Sequence[Manifest]) -> Found:
    """KubeRay's cleanup Job is a head without Ray, with its own node type."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    heads = [t for t in templates(list(of_kind(manifests, "RayService"))) if t.place == "head"]
    for target in templates(list(of_kind(manifests, "StatefulSet"))):
        if "REDIS_PASSWORD" not in variables(target.main) or target.labels.get("serve-app/part") != "redis":
            continue
        there = pod_peer(target, manifests)
        for head in heads:
            bare = {"ray.io/node-type": "redis-cleanup"}  # some versions omit our labels
            for labels in (bare, {**head.labels, **bare}):
                here = Peer(labels, there.namespace, there.namespace_labels)
                if not reaches(policies, here, there, REDIS):
                    yield target.owner, "KubeRay's clean-up Job cannot reach Redis, so a deleted RayService would hang"
                    break
