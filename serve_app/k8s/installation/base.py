"""The base: namespace, priorities, accounts, network policies, Redis, the volume claim and the ingress.

`_fields` fills the YAML in templates/.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from string import Template

import yaml

from serve_app.k8s.options.login import with_login
from serve_app.k8s.options.quota import quota
from serve_app.k8s.options.secrets import external_secrets
from serve_app.k8s.options.tls import ALB, certificate
from serve_app.k8s.pods import (
    CLAIM_OF_OTHERS,
    CLASS_OF_CLUSTER,
    GPUS_OF_NODES,
    LEVEL_OF_OTHERS,
    ONLINE,
    POPULATION,
    PULL_SECRETS,
    STORE_ACCOUNT,
    Manifest,
    labels,
    pull_secrets,
)
from serve_app.k8s.values import DATA, MODELS, Values, digest

TEMPLATES = Path(__file__).with_name("templates")
CLUSTER_WIDE = ("Namespace", "PriorityClass")
# Objects that the values ask for; there are none by default.
OPTIONS: dict[str, Callable[[Values], list[Manifest]]] = {
    "quota": quota,
    "external_secrets": external_secrets,
    "certificate": certificate,
}


def base(values: Values) -> list[Manifest]:
    return [manifest for name in base_parts(values) for manifest in base_part(values, name)]


def base_parts(values: Values) -> list[str]:
    """Names for `base_part`."""
    names = ["namespace"] if values.create_namespace else []
    names += ["priorities", "accounts", "network"]
    if values.has_ray_service and values.redis.address is None:
        names.append("redis")
    if values.storage.claim is None:
        names += ["claim", "folders"] if values.storage.prepare else ["claim"]
    return [*names, *OPTIONS]


def base_part(values: Values, name: str) -> list[Manifest]:
    return OPTIONS[name](values) if name in OPTIONS else from_template(values, name)


def way_in(values: Values) -> list[Manifest]:
    """The server's Ingress, or Gateway and HTTPRoute, or nothing."""
    if values.ingress.kind != "alb":
        return [] if values.ingress.kind == "none" else from_template(values, values.ingress.kind)
    (ingress,) = from_template(values, "alb")
    if values.tls.pods:
        ingress["metadata"]["annotations"] |= ALB
    return with_login(values, ingress, values.ingress.oidc) if values.ingress.oidc else [ingress]


def from_template(values: Values, name: str) -> list[Manifest]:
    """The objects of templates/NAME.yaml, in our namespace and with our labels."""
    text = Template((TEMPLATES / f"{name}.yaml").read_text()).substitute(_fields(values))
    # Resolves YAML anchors: objects must not share parts.
    manifests = json.loads(json.dumps(list(yaml.safe_load_all(text))))
    return [_completed(values, manifest) for manifest in manifests]


def _fields(values: Values) -> dict[str, str]:
    private = [{"ipBlock": {"cidr": str(cidr)}} for cidr in values.private_cidrs]
    redis = {"podSelector": {"matchLabels": labels(values, "redis")}}
    closed = {} if values.create_namespace else {"matchLabels": {"app.kubernetes.io/instance": values.name}}
    return {
        "name": values.name,
        "namespace": values.namespace,
        "pod_security": values.pod_security,
        "operator_namespace": values.operator_namespace,
        "monitoring_namespace": values.monitoring_namespace,
        "closed": json.dumps(closed),
        "private_blocks": json.dumps(private),
        "redis_peers": json.dumps(private if values.redis.address else [redis]),
        "redis_port": str(values.redis.port),
        "online_priority": values.cluster_named(ONLINE),
        "population_priority": values.cluster_named(POPULATION),
        "redis_image": values.images.redis,
        "busybox_image": values.images.busybox,
        "claim": values.claim,
        "access": values.storage.access,
        "size": values.storage.size,
        "folders": ", ".join(_folders(values)),
        "host": values.ingress.host,
        "gateway_class": values.ingress.gateway_class,
        "issuer": values.ingress.issuer,
        "drain_s": str(values.drain_s),
        # Of PromQL: the installation's series, and its pods among kube-state-metrics'.
        "ours": f'namespace="{values.namespace}", installation="{values.name}"',
        "pods": f'namespace="{values.namespace}", pod=~"{values.name}-.*"',
    }


def _folders(values: Values) -> list[str]:
    """Folders on the claim for the serving user."""
    stores = [store for store in (values.store, values.population_store) if PurePosixPath(store).is_relative_to(DATA)]
    return list(dict.fromkeys([MODELS, *stores]))


def _completed(values: Values, manifest: Manifest) -> Manifest:
    metadata = manifest["metadata"]
    if manifest["kind"] not in CLUSTER_WIDE:
        metadata["namespace"] = values.namespace
    if manifest["kind"] != "Namespace":  # may have several installations
        metadata["labels"] = {**labels(values), **metadata.get("labels", {})}
    if manifest["kind"] == "PersistentVolumeClaim" and values.storage.storage_class:
        manifest["spec"]["storageClassName"] = values.storage.storage_class
    if manifest["kind"] == "ServiceAccount":  # the rules read these annotations
        claim = {CLAIM_OF_OTHERS: values.storage.claim} if values.storage.claim else {}
        if values.storage.storage_class:
            claim[CLASS_OF_CLUSTER] = values.storage.storage_class
        level = {} if values.create_namespace else {LEVEL_OF_OTHERS: values.pod_security}
        pull = {PULL_SECRETS: ",".join(values.images.pull_secrets)} if values.images.pull_secrets else {}
        role = {}
        if values.store_role and metadata["name"] == values.named(STORE_ACCOUNT):
            role = {"eks.amazonaws.com/role-arn": values.store_role}
        metadata["annotations"] = {**claim, **level, **pull, GPUS_OF_NODES: ",".join(values.gpus), **role}
    if manifest["kind"] in ("Job", "StatefulSet") and values.images.pull_secrets:
        manifest["spec"]["template"]["spec"]["imagePullSecrets"] = pull_secrets(values)
    if manifest["kind"] == "Job":  # Jobs are immutable
        metadata["name"] += f"-{digest(manifest['spec']['template'])}"
    return manifest
