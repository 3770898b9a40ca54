"""Rules for what the API server refuses or drops: names, quantities, duplicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from serve_app.k8s.rules.manifests import RAY_KINDS, Found, Manifest, Template, of_kind, rule, templates
from serve_app.k8s.write_back import canonical_quantity, differences, written_back

DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9]|-(?!-)){0,14}")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
VARIABLE = re.compile(r"[ -<>-~]+")
# Become pod labels.
SHORT_NAMES = ("Job", "StatefulSet", "Service", "Namespace")


@rule("write-back")
def write_back(manifests: Sequence[Manifest]) -> Found:
    for owner in of_kind(manifests, *RAY_KINDS):
        try:
            places = list(differences(owner, written_back(owner)))
        except ValueError:  # rule `quantities`
            continue
        if places:
            yield owner, f"{places[0]}: the operator writes it back in another form, and the next apply conflicts"


@rule("names")
def names(manifests: Sequence[Manifest]) -> Found:
    for manifest in manifests:
        metadata = manifest["metadata"]
        name = metadata.get("name", "")
        most = 63 if manifest.get("kind") in SHORT_NAMES else 253
        if not DNS_NAME.fullmatch(name) and manifest.get("kind") not in ("Role", "RoleBinding", *RAY_KINDS):
            yield manifest, f"the name '{name}' is no DNS name: small letters, digits, hyphens and dots"
        elif len(name) > most:
            yield manifest, f"the name has {len(name)} characters, and {most} are allowed"
        for key, value in (metadata.get("labels") or {}).items():
            if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
                yield manifest, f"the label {key} cannot have the value '{value}'"
    for template in templates(manifests):
        for key, value in template.labels.items():
            if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
                yield template.owner, f"the pods' label {key} cannot have the value '{value}'"
        for container in template.containers:
            if not DNS_LABEL.fullmatch(container["name"]) or len(container["name"]) > 63:
                yield template.owner, f"the container's name '{container['name']}' is no DNS label"
            for port in container.get("ports") or []:
                if "name" in port and not PORT_NAME.fullmatch(port["name"]):
                    yield template.owner, f"the port's name '{port['name']}' is none: 15 small letters, digits, hyphens"
                if not 1 <= port["containerPort"] <= 65535:
                    yield template.owner, f"there is no port {port['containerPort']}"
            for entry in container.get("env") or []:
                if not VARIABLE.fullmatch(entry["name"]):
                    yield template.owner, f"'{entry['name']}' is no name of a variable"


@rule("doubles")
def doubles(manifests: Sequence[Manifest]) -> Found:
    """Duplicate keys of list maps. The API server refuses them or keeps one."""
    for template in templates(manifests):
        for what, keys in _keyed(template):
            for key, count in Counter(keys).items():
                if count > 1:
                    yield template.owner, f"{what} '{key}' is there {count} times"


def _keyed(template: Template) -> Iterator[tuple[str, list[Any]]]:
    yield "the container", [container["name"] for container in template.containers]
    yield "the volume", [volume["name"] for volume in template.spec.get("volumes") or []]
    for container in template.containers:
        of = f"of {container['name']}"
        mounts, ports = container.get("volumeMounts") or [], container.get("ports") or []
        yield f"the mount {of} at", [mount["mountPath"] for mount in mounts]
        yield f"the variable {of}", [entry["name"] for entry in container.get("env") or []]
        yield f"the port {of}", [f"{port['containerPort']}/{port.get('protocol', 'TCP')}" for port in ports]
        yield f"the port {of} named", [port["name"] for port in ports if "name" in port]


@rule("quantities")
def quantities(manifests: Sequence[Manifest]) -> Found:
    for manifest in manifests:
        for place, value in _quantities(manifest):
            try:
                if canonical_quantity(value).startswith("-"):
                    yield manifest, f"{place} is below zero: '{value}'"
            except ValueError as error:
                yield manifest, f"{place}: {error}, as 500m, 2 or 16Gi"


def _quantities(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, list):
        for index, one in enumerate(node):
            yield from _quantities(one, f"{place}[{index}]")
    elif isinstance(node, dict):
        for key, value in node.items():
            here = f"{place}.{key}" if place else str(key)
            if key in ("requests", "limits") and isinstance(value, dict) and place.endswith("resources"):
                yield from ((f"{here}.{name}", amount) for name, amount in value.items())
            elif key == "sizeLimit":
                yield here, value
            else:
                yield from _quantities(value, here)


@rule("policy-form")
def policy_form(manifests: Sequence[Manifest]) -> Found:
    for policy in of_kind(manifests, "NetworkPolicy"):
        spec = policy["spec"]
        types = spec.get("policyTypes") or ["Ingress", "Egress"]
        for direction in ("Ingress", "Egress"):
            if spec.get(direction.lower()) and direction not in types:
                yield policy, f"has rules of {direction.lower()}, and policyTypes has no {direction}: they do nothing"
            for entry in spec.get(direction.lower()) or []:
                for port in entry.get("ports") or []:
                    if port.get("protocol", "TCP") not in ("TCP", "UDP", "SCTP"):
                        yield policy, f"protocol {port['protocol']} is not one of TCP, UDP, SCTP"
                    if "endPort" in port and port["endPort"] < port.get("port", 0):
                        yield policy, f"endPort {port['endPort']} is below port {port.get('port')}"


@rule("refused-forms")
def refused_forms(manifests: Sequence[Manifest]) -> Found:
    """Fields that are valid alone but not together."""
    for owner in of_kind(manifests, "Deployment"):
        strategy = owner["spec"].get("strategy") or {}
        bounds = strategy.get("rollingUpdate") or {}
        none = (0, "0", "0%")
        if bounds.get("maxSurge", 1) in none and bounds.get("maxUnavailable", 1) in none:
            yield owner, "rollingUpdate: maxSurge and maxUnavailable are both 0, so no pod could ever be replaced"
        if strategy.get("type") == "Recreate" and bounds:
            yield owner, "rollingUpdate does not go with the strategy Recreate"
    for template in templates(manifests):
        if template.spec.get("dnsPolicy") == "None" and not (template.spec.get("dnsConfig") or {}).get("nameservers"):
            yield template.owner, "dnsPolicy None needs dnsConfig.nameservers"


@rule("restart-policy")
def restart_policy(manifests: Sequence[Manifest]) -> Found:
    for owner in of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet"):
        if (policy := owner["spec"]["template"]["spec"].get("restartPolicy", "Always")) != "Always":
            yield owner, f"restartPolicy {policy}: the API server takes Always alone here"
