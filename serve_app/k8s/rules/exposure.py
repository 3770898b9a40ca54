"""Rules for exposure: Services, dashboards and cluster-wide objects."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.k8s.rules.manifests import Found, Manifest, ingress_services, of_kind, ray_clusters, rule

OUTWARD = ("LoadBalancer", "NodePort")


@rule("exposed")
def exposed(manifests: Sequence[Manifest]) -> Found:
    for service in of_kind(manifests, "Service"):
        for what in _outward(service["spec"]):
            yield service, f"{what} is open to the network without TLS; put an Ingress or a Gateway before it"
    for service in of_kind(manifests, "RayService"):
        for what in _outward((service["spec"].get("serveService") or {}).get("spec") or {}):
            yield service, f"serveService: {what} is open to the network without TLS"
    for owner, cluster in ray_clusters(manifests):
        head = cluster.get("headGroupSpec") or {}
        if head.get("enableIngress"):
            yield owner, "enableIngress puts Ray's dashboard, which runs code, before everybody"
        if head.get("serviceType") in OUTWARD:
            yield owner, f"serviceType {head['serviceType']} opens Ray's dashboard, which runs code, to the network"
        for what in _outward((head.get("headService") or {}).get("spec") or {}):
            yield owner, f"headService: {what} opens Ray's dashboard, which runs code, to the network"
    for ingress in of_kind(manifests, "Ingress"):
        if any(service["name"].endswith("-head-svc") for service in ingress_services(ingress)):
            yield ingress, "leads to a head, whose dashboard runs code"
        if any(not entry.get("host") or entry["host"] == "*" for entry in ingress["spec"].get("rules") or []):
            yield ingress, "answers to any host; name yours"


def _outward(spec: Manifest) -> list[str]:
    found = [f"type {spec['type']}"] if spec.get("type") in OUTWARD else []
    return found + (["externalIPs"] if spec.get("externalIPs") else [])


@rule("cluster-wide")
def cluster_wide(manifests: Sequence[Manifest]) -> Found:
    """Objects with an effect outside the installation."""
    for priority in of_kind(manifests, "PriorityClass"):
        if priority.get("globalDefault"):
            yield priority, "globalDefault gives this priority to all pods of the cluster"
        if priority.get("value", 0) > 1_000_000:
            yield priority, "is above a million, near the cluster's own components, which it would displace"
    for owner in of_kind(manifests, "DaemonSet"):
        yield owner, "a DaemonSet runs on all nodes of the cluster, and nothing of ours needs that"
