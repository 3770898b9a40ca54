"""Rules for ExternalSecrets and what else names Secrets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from serve_app.k8s.rules.manifests import Found, Manifest, containers, of_kind, ray_clusters, rule, templates
from serve_app.k8s.values_file.options import SECRET_KEYS


@rule("external-secrets", whole=True)
def external_secrets(manifests: Sequence[Manifest]) -> Found:
    """Where some Secrets come from outside, all that pods need do."""
    made = {_target(one): one for one in of_kind(manifests, "ExternalSecret")}
    if not made:
        return
    for name, count in Counter(map(_target, of_kind(manifests, "ExternalSecret"))).items():
        if count > 1:
            yield made[name], f"two ExternalSecrets make the Secret '{name}', and undo each other"
    needed = {(id(owner), name): owner for owner, name in _needed(manifests)}
    for (_, name), owner in needed.items():
        if name not in made and not name.endswith("-pods-tls"):  # cert-manager's
            yield owner, f"no ExternalSecret makes the Secret '{name}': add it to external_secrets.secrets"
    for name, one in made.items():
        suffixes = [suffix for suffix in SECRET_KEYS if name.endswith(f"-{suffix}")]
        has = {entry["secretKey"] for entry in one["spec"].get("data") or []}
        if not suffixes:
            yield one, f"nothing here is named '{name}'"
        elif not one["spec"].get("dataFrom"):
            keys = SECRET_KEYS[max(suffixes, key=len)]
            missing = [key for key in keys if key not in has] if "alerts" not in suffixes else []
            if missing:
                yield one, f"the Secret '{name}' would have no key '{missing[0]}'"
        if str(one["spec"].get("refreshInterval", "1h")) in ("0", "0s"):
            yield one, "refreshInterval 0 never takes a changed key"


def _target(one: Manifest) -> str:
    return str((one["spec"].get("target") or {}).get("name") or one["metadata"]["name"])


def _needed(manifests: Sequence[Manifest]) -> Iterator[tuple[Manifest, str]]:
    """(object, Secret) without which its pods do not start."""
    for template in templates(manifests):
        for volume in template.spec.get("volumes") or []:
            source = volume.get("secret") or {}
            if source and not source.get("optional"):
                yield template.owner, source["secretName"]
        for container in containers(template.spec):
            for entry in container.get("env") or []:
                reference = (entry.get("valueFrom") or {}).get("secretKeyRef") or {}
                if reference and not reference.get("optional"):
                    yield template.owner, reference["name"]
    for owner, cluster in ray_clusters(manifests):
        password = (cluster.get("gcsFaultToleranceOptions") or {}).get("redisPassword") or {}
        if reference := (password.get("valueFrom") or {}).get("secretKeyRef"):
            yield owner, reference["name"]


@rule("alerts")
def alerts(manifests: Sequence[Manifest]) -> Found:
    for config in of_kind(manifests, "AlertmanagerConfig"):
        labels = config["metadata"].get("labels") or {}
        if labels.get("app.kubernetes.io/part-of") != "serve-app":
            yield config, "has no label app.kubernetes.io/part-of: serve-app, by which Alertmanager selects"
        receivers = config["spec"].get("receivers") or []
        for name in _receivers(config["spec"].get("route") or {}):
            if name not in {receiver["name"] for receiver in receivers}:
                yield config, f"there is no receiver '{name}'"
        for receiver in receivers:
            if len(receiver) == 1:
                yield config, f"receiver {receiver['name']} sends nothing anywhere"
        secret = f"{labels.get('app.kubernetes.io/instance')}-alerts"
        for reference in _references(receivers):
            if reference["name"] != secret:
                yield config, f"there is no Secret '{reference['name']}'"
            elif reference["key"] not in SECRET_KEYS["alerts"]:
                yield config, f"the Secret '{secret}' has no key '{reference['key']}'"


def _receivers(route: Manifest) -> Iterator[str]:
    if "receiver" in route:
        yield route["receiver"]
    for below in route.get("routes") or []:
        yield from _receivers(below)


def _references(node: object) -> Iterator[Manifest]:
    if isinstance(node, list):
        for one in node:
            yield from _references(one)
    elif isinstance(node, dict):
        if set(node) == {"name", "key"}:
            yield node
        for one in node.values():
            yield from _references(one)
