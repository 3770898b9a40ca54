"""Normalizes Ray objects to the form that the API server and KubeRay's operator write back.

To add its finalizer the operator reads and updates the whole object. It then owns every field whose form changed: the
next server-side apply conflicts, and GitOps tools report drift. Forms are those of KubeRay 1.7.0
(`ray-operator/apis/ray/v1`), its CRDs' defaults and Kubernetes' `resource.Quantity`. Defaults of unused volume types
are missing (tests/k8s/test_write_back.py checks the others).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import Any

Manifest = dict[str, Any]
# "" is the spec itself.
CLUSTER_FIELDS = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec", "RayCluster": ""}
DECIMAL = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}  # powers of 1000
BINARY = {"": 0, "Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}  # powers of 1024
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d+))?")

GROUP_DEFAULTS = {"replicas": 0, "minReplicas": 0, "maxReplicas": 2**31 - 1, "numOfHosts": 1, "priority": 0}
SPEC_DEFAULTS = {"RayJob": {"submissionMode": "K8sJobMode", "backoffLimit": 0, "ttlSecondsAfterFinished": 0}}
# Fields with omitempty are dropped when false, "" or 0.
PLAIN_BOOLS = {
    "readOnly", "hostNetwork", "hostPID", "hostIPC", "stdin", "stdinOnce", "tty",
}  # fmt: skip
PLAIN_INTS = {
    "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold", "hostPort",
    "entrypointNumCpus", "entrypointNumGpus",
}  # fmt: skip
# Free-form maps are dropped when empty.
MAPS = {"labels", "annotations", "nodeSelector", "matchLabels", "headServiceAnnotations", "rayStartParams"}
QUANTITY_MAPS = {"requests", "limits", "overhead"}
QUANTITIES = {"sizeLimit", "divisor"}


def written_back(manifest: Manifest) -> Manifest:
    """The object after the operator's first update; objects of other kinds unchanged.

    Raises ValueError for an invalid quantity.
    """
    if manifest.get("kind") not in CLUSTER_FIELDS:
        return manifest
    found = copy.deepcopy(manifest)
    spec = found.get("spec") or {}
    for name, value in SPEC_DEFAULTS.get(found["kind"], {}).items():
        spec.setdefault(name, value)
    if upgrade := (spec.get("upgradeStrategy") or {}).get("clusterUpgradeOptions"):
        upgrade.setdefault("maxSurgePercent", 100)
    field = CLUSTER_FIELDS[found["kind"]]
    cluster = (spec.get(field) or {}) if field else spec
    for group in cluster.get("workerGroupSpecs") or []:
        for name, value in GROUP_DEFAULTS.items():
            group.setdefault(name, value)
        group.setdefault("scaleStrategy", {})
    groups = [cluster.get("headGroupSpec") or {}, *(cluster.get("workerGroupSpecs") or [])]
    for template in [*(group.get("template") for group in groups), spec.get("submitterPodTemplate")]:
        if template:
            _write_template(template)
    found["spec"] = _fields(spec)
    return found


def differences(written: Any, back: Any, place: str = "") -> Iterator[str]:
    """Paths, such as spec.a[0].b, at which the two differ."""
    if isinstance(written, dict) and isinstance(back, dict):
        for key in [*written, *(key for key in back if key not in written)]:
            here = f"{place}.{key}" if place else str(key)
            if key in written and key in back:
                yield from differences(written[key], back[key], here)
            else:
                yield here
    elif isinstance(written, list) and isinstance(back, list) and len(written) == len(back):
        for index, (one, other) in enumerate(zip(written, back, strict=True)):
            yield from differences(one, other, f"{place}[{index}]")
    elif written != back or type(written) is not type(back):
        yield place


def quantity(value: Any) -> Fraction:
    """As a number: 1/2 for "500m", 1024 for "1Ki". Raises ValueError for an invalid quantity."""
    return _parsed(value)[0]


def canonical_quantity(value: Any) -> str:
    """Kubernetes' canonical form: the largest unit without a fraction. Raises ValueError for an invalid quantity."""
    amount, binary, exponent = _parsed(value)
    if binary and abs(amount) >= 1024:
        return _in_units(amount, 1024, BINARY)
    if exponent:
        power = max(p for p in DECIMAL.values() if amount % Fraction(1000) ** p == 0) if amount else 0
        return f"{amount / Fraction(1000) ** power}{f'e{3 * power}' if power else ''}"
    return _in_units(amount, 1000, DECIMAL)


def _parsed(value: Any) -> tuple[Fraction, str | None, str | None]:
    """(amount, binary unit, exponent), the latter two as written."""
    if (match := _QUANTITY.fullmatch(str(value))) is None:
        raise ValueError(f"'{value}' is no quantity")
    number, binary, decimal, exponent = match.groups()
    unit = 1024 ** BINARY[binary] if binary else Fraction(10) ** int(exponent or 3 * DECIMAL[decimal or ""])
    return Fraction(number) * unit, binary, exponent


def _in_units(amount: Fraction, base: int, units: dict[str, int]) -> str:
    if not amount:
        return "0"
    smallest = Fraction(base) ** min(units.values())
    amount = ceil(amount / smallest) * smallest  # rounded up
    unit = max((u for u in units if amount % Fraction(base) ** units[u] == 0), key=units.__getitem__)
    return f"{amount / Fraction(base) ** units[unit]}{unit}"


def _write_template(template: Manifest) -> None:
    """Adds what Go's PodTemplateSpec always has."""
    template.setdefault("metadata", {})
    spec = template.get("spec") or {}
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        container.setdefault("resources", {})
        for port in container.get("ports") or []:
            port.setdefault("protocol", "TCP")


def _fields(node: Any) -> Any:
    if isinstance(node, list):
        return [_fields(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {key: _field(key, value) for key, value in node.items() if not _is_left_out(key, value)}


def _is_left_out(key: str, value: Any) -> bool:
    if value is None or value == []:
        return True
    if value == {}:
        return key in (MAPS | QUANTITY_MAPS) - {"rayStartParams"}
    return (value == "" and key != "name") or (value is False and key in PLAIN_BOOLS) or (
        value == 0 and not isinstance(value, bool) and key in PLAIN_INTS)  # fmt: skip


def _field(key: str, value: Any) -> Any:
    if key in QUANTITY_MAPS and isinstance(value, dict):
        return {name: canonical_quantity(amount) for name, amount in value.items()}
    if key in QUANTITIES:
        return canonical_quantity(value)
    return value if key in MAPS else _fields(value)
