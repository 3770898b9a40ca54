"""What is set at install time: placeholders to render with, the template's pipeline for each, and the choices.

Not set at install time, but with the values file that a chart is made from: presets, GPU types, the population, and
every field that is not named here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from serve_app.k8s.chart.choices import Choice, Option, choice, either
from serve_app.k8s.values import Way

DRAIN, DEADLINE, PORT = 3539, 5654321, 65001
CIDR, PULL_SECRET = "198.51.100.0/24", "zz-pull"
FIELDS: dict[str, Any] = {
    "name": "zz-name",
    "namespace": "zz-space",
    "operator_namespace": "zz-operator",
    "monitoring_namespace": "zz-monitoring",
    "private_cidrs": [CIDR],
    "images": {
        "registry": "", "cpu": "zz-cpu:0", "cuda": "zz-cuda:0", "redis": "zz-redis-image:0", "busybox": "zz-busybox:0",
    },
    "storage": {"size": "7654321Gi"},
    "ingress": {"host": "zz-host.example", "gateway_class": "zz-gateway", "issuer": "zz-issuer"},
    "store": "/data/zz-store",
    "population_store": "/data/zz-populations",
    "drain_s": DRAIN,
    "deadline_s": DEADLINE,
}  # fmt: skip
REDIS = f"rediss://zz-redis.example:{PORT}"
# Placeholder -> pipeline. What has another in it comes first.
PIPELINES: dict[str, str] = {
    "zz-space.zz-name": 'include "serve-app.cluster-name" $',
    "zz-name": 'include "serve-app.name" $',
    "zz-space": 'include "serve-app.namespace" $',
    "zz-operator": "$.Values.operator_namespace",
    "zz-monitoring": "$.Values.monitoring_namespace",
    "zz-cpu:0": 'include "serve-app.image" (list $ "cpu")',
    "zz-cuda:0": 'include "serve-app.image" (list $ "cuda")',
    "zz-redis-image:0": "$.Values.images.redis",
    "zz-busybox:0": "$.Values.images.busybox",
    PULL_SECRET: 'join "," $.Values.images.pull_secrets',
    "zz-claim": "$.Values.storage.claim",
    "zz-class": "$.Values.storage.storage_class",
    "7654321Gi": "$.Values.storage.size",
    REDIS: "$.Values.redis.address",
    str(PORT): 'regexFind "[0-9]+$" $.Values.redis.address',
    "zz-host.example": "$.Values.ingress.host",
    "zz-gateway": "$.Values.ingress.gateway_class",
    "zz-issuer": "$.Values.ingress.issuer",
    "/data/zz-store": "$.Values.store",
    "s3://zz-store/runs": "$.Values.store",
    "/data/zz-populations": "$.Values.population_store",
    "s3://zz-populations/runs": "$.Values.population_store",
    "zz-populations": 'trimPrefix "/data/" $.Values.population_store',
    str(2 * DRAIN): "mul (int64 $.Values.drain_s) 2",
    str(DRAIN + 60): "add (int64 $.Values.drain_s) 60",
    str(DRAIN): "int64 $.Values.drain_s",
    str(DEADLINE): "int64 $.Values.deadline_s",
}  # fmt: skip
LISTS = {CIDR: "$.Values.private_cidrs", PULL_SECRET: "$.Values.images.pull_secrets"}

NAMESPACE = either("$.Values.create_namespace", {"create_namespace": False}, {"create_namespace": True})
LEVEL = choice(
    ('ne $.Values.pod_security "privileged"', {"pod_security": "baseline"}),
    ('eq $.Values.pod_security "privileged"', {"pod_security": "privileged"}),
)
PULL = either(
    "$.Values.images.pull_secrets", {"images": {"pull_secrets": []}}, {"images": {"pull_secrets": [PULL_SECRET]}}
)
CLAIM = either("$.Values.storage.claim", {"storage": {"claim": None}}, {"storage": {"claim": "zz-claim"}})
CLASS = either(
    "$.Values.storage.storage_class", {"storage": {"storage_class": None}}, {"storage": {"storage_class": "zz-class"}}
)
PREPARE = either("$.Values.storage.prepare", {"storage": {"prepare": False}}, {"storage": {"prepare": True}})
ACCESS = choice(
    ('ne $.Values.storage.access "ReadWriteOnce"', {"storage": {"access": "ReadWriteMany"}}),
    ('eq $.Values.storage.access "ReadWriteOnce"', {"storage": {"access": "ReadWriteOnce"}}),
)
MANAGED_REDIS = either("$.Values.redis.address", {"redis": {"address": None}}, {"redis": {"address": REDIS}})
STORE = choice(
    ('hasPrefix "/" $.Values.store', {"store": "/data/zz-store"}),
    ('not (hasPrefix "/" $.Values.store)', {"store": "s3://zz-store/runs"}),
)
POPULATION_STORE = choice(
    ('hasPrefix "/" $.Values.population_store', {"population_store": "/data/zz-populations"}),
    ('not (hasPrefix "/" $.Values.population_store)', {"population_store": "s3://zz-populations/runs"}),
)
INGRESS = choice(
    *((f'eq $.Values.ingress.kind "{kind}"', {"ingress": {"kind": kind}}) for kind in ("none", "alb", "gateway"))
)


class PresetOf(Choice):
    """Which of these presets a way runs."""

    def condition(self, chosen: Iterable[int]) -> str:
        (way,) = self.options[0].fields["run"]
        names = (json.dumps(self.options[index].condition) for index in sorted(chosen))
        return f"eq ({runs(way)}) {' '.join(names)}"


def preset_of(way: Way, presets: Iterable[str]) -> PresetOf:
    return PresetOf(tuple(Option(name, {"run": {way: name}}) for name in presets))


def present(way: Way, preset: str) -> Choice:
    return choice((f"not ({runs(way)})", {}), (runs(way), {"run": {way: preset}}))


def runs(way: Way) -> str:
    """The preset that a way runs, or nothing."""
    return f'include "serve-app.preset" (list $ "{way}")'
