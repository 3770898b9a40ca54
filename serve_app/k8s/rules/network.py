"""Rules of what lets traffic in and out."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from serve_app.k8s.rules.manifests import Found, Manifest, of_kind, rule, selects, templates

# A generation without a byte for so long is over; below it an idle stream would be cut.
MIN_STREAM_TIMEOUT_S = 600
ALB_IDLE = "idle_timeout.timeout_seconds="
ALB_ATTRIBUTES = "alb.ingress.kubernetes.io/load-balancer-attributes"


@rule("ingress-tls")
def ingress_tls(manifests: Sequence[Manifest]) -> Found:
    for ingress in of_kind(manifests, "Ingress"):
        if not ingress["spec"].get("tls"):
            yield ingress, "no tls: keys would travel in the clear"
    for gateway in of_kind(manifests, "Gateway"):
        for listener in gateway["spec"].get("listeners") or []:
            if listener.get("protocol") == "HTTPS" and not (listener.get("tls") or {}).get("certificateRefs"):
                yield gateway, f"listener {listener.get('name')} has no certificate"
        if not any(listener.get("protocol") == "HTTPS" for listener in gateway["spec"].get("listeners") or []):
            yield gateway, "no HTTPS listener: keys would travel in the clear"


@rule("stream-timeout")
def stream_timeout(manifests: Sequence[Manifest]) -> Found:
    for ingress in of_kind(manifests, "Ingress"):
        attributes = (ingress["metadata"].get("annotations") or {}).get(ALB_ATTRIBUTES, "").split(",")
        idle = [int(one.removeprefix(ALB_IDLE)) for one in attributes if one.startswith(ALB_IDLE)]
        if not idle or idle[0] < MIN_STREAM_TIMEOUT_S:
            yield ingress, f"the load balancer's idle timeout is below {MIN_STREAM_TIMEOUT_S} s and would cut streams"
    for route in of_kind(manifests, "HTTPRoute"):
        for entry in route["spec"].get("rules") or []:
            timeout = str((entry.get("timeouts") or {}).get("request", ""))
            if timeout != "0s" and (not timeout.endswith("s") or int(timeout[:-1]) < MIN_STREAM_TIMEOUT_S):
                yield route, f"timeouts.request is below {MIN_STREAM_TIMEOUT_S} s and would cut streams"


@rule("cidr")
def cidr(manifests: Sequence[Manifest]) -> Found:
    for policy in of_kind(manifests, "NetworkPolicy"):
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for entry in policy["spec"].get(direction) or []:
                for peer in entry.get(peers) or []:
                    block = peer.get("ipBlock") or {}
                    for value in [block.get("cidr"), *(block.get("except") or [])] if block else []:
                        try:
                            ipaddress.ip_network(str(value))
                        except ValueError as error:
                            yield policy, f"ipBlock: {error}"


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
    """What a NetworkPolicy must let through (pitfall 11), by port: else it fails only in the cluster."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    needed = {"head": (8265, 6379, 8080), "replica": (8000, 8080), "redis": (6379,)}
    for template in templates(manifests):
        part = template.labels.get("serve-app/part", "")
        open_ports = {
            port.get("port")
            for policy in policies
            if selects(policy["spec"].get("podSelector") or {}, template.labels)
            for entry in policy["spec"].get("ingress") or []
            for port in entry.get("ports") or []
        }
        for port in (
            needed.get(part, ()) if policies and template.owner.get("kind") in ("RayService", "StatefulSet") else ()
        ):
            if port not in open_ports:
                yield template.owner, f"no NetworkPolicy lets anybody reach port {port} of {part}"


@rule("cleanup-reaches-redis", whole=True)
def cleanup_reaches_redis(manifests: Sequence[Manifest]) -> Found:
    """The Job that KubeRay starts at the end has Ray's labels and none of ours."""
    for policy in of_kind(manifests, "NetworkPolicy"):
        if not selects(policy["spec"].get("podSelector") or {}, {"serve-app/part": "redis"}):
            continue
        peers = [peer for entry in policy["spec"].get("ingress") or [] for peer in entry.get("from") or []]
        if policy["spec"].get("podSelector") and not any(
            "ray.io/node-type" in str(peer) and "redis-cleanup" in str(peer) for peer in peers
        ):
            yield policy, "KubeRay's clean-up Job cannot reach Redis, so a deleted RayService would hang"
