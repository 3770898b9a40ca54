"""Rules for ingress traffic. reach.py has those between pods."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from serve_app.k8s.rules.manifests import Found, Manifest, of_kind, rule

# A lower limit would cut idle streams.
MIN_STREAM_TIMEOUT_S = 600
ALB_IDLE = "idle_timeout.timeout_seconds="
ALB_ATTRIBUTES = "alb.ingress.kubernetes.io/load-balancer-attributes"


@rule("ingress-tls")
def ingress_tls(manifests: Sequence[Manifest]) -> Found:
    for ingress in of_kind(manifests, "Ingress"):
        if not ingress["spec"].get("tls"):
            yield ingress, "no tls: keys would travel in the clear"
        listened = (ingress["metadata"].get("annotations") or {}).get("alb.ingress.kubernetes.io/listen-ports", "")
        if '"HTTP"' in listened.replace("'", '"'):
            yield ingress, "listens to HTTP too: keys would travel in the clear"
    for gateway in of_kind(manifests, "Gateway"):
        for listener in gateway["spec"].get("listeners") or []:
            if listener.get("protocol") == "HTTPS" and not (listener.get("tls") or {}).get("certificateRefs"):
                yield gateway, f"listener {listener.get('name')} has no certificate"
        if not any(listener.get("protocol") == "HTTPS" for listener in gateway["spec"].get("listeners") or []):
            yield gateway, "no HTTPS listener: keys would travel in the clear"


@rule("ingress-class")
def ingress_class(manifests: Sequence[Manifest]) -> Found:
    for ingress in of_kind(manifests, "Ingress"):
        name, annotations = ingress["spec"].get("ingressClassName"), ingress["metadata"].get("annotations") or {}
        if not name:
            yield ingress, "no ingressClassName: no controller takes it, or another one does"
        elif name != "alb" and any(key.startswith("alb.ingress.kubernetes.io/") for key in annotations):
            yield ingress, f"its annotations are the ALB's, and its class is {name}"
        secured = {host for entry in ingress["spec"].get("tls") or [] for host in entry.get("hosts") or []}
        hosts = {entry.get("host") for entry in ingress["spec"].get("rules") or []} - {None, "*"}
        if secured and not hosts <= secured:
            yield ingress, f"tls is for {', '.join(sorted(secured))} and not for {', '.join(sorted(hosts - secured))}"


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
