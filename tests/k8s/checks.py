"""All that can be asked of manifests without a cluster. A check's answer is a list of refusals, each with its reason.

The checks, by name:

- builtin: Kubernetes' own objects, strictly, by kubernetes-validate
- custom: custom resources by their CRDs (schemas/)
- pod: each pod template, lifted out and taken as a Pod
- serve: serveConfigV2 by Ray's own schema
- any other: one of serve_app.k8s.rules, by the rule's name
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from serve_app.k8s.rules import check as check_rules
from serve_app.k8s.rules.manifests import RAY_KINDS, Manifest, serve_configs, templates
from serve_app.k8s.write_back import differences, written_back
from tests.k8s.schemas import schemas

ROOT = Path(__file__).parents[2]
# Of Kubernetes; what Karpenter 1.14 goes up to.
KUBERNETES = "1.36"
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Refusal:
    """`check` is one of the list above."""

    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: {self.message}"


def load(text: str) -> list[Manifest]:
    """The objects of a text of YAML documents."""
    return [document for document in yaml.load_all(text, LOADER) if document]


def refusals(manifests: Sequence[Manifest], *, whole: bool = True) -> list[Refusal]:
    """Everything that any check has against these objects."""
    found = [*builtin(manifests), *custom(manifests), *pods(manifests), *serve(manifests)]
    try:
        return [*found, *(Refusal(p.rule, p.where, p.message) for p in check_rules(manifests, whole=whole))]
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        if found:  # rules may rely on the schemas
            return found
        return [Refusal("rules", "", f"cannot be read: {error!r}")]


def builtin(manifests: Sequence[Manifest]) -> Iterator[Refusal]:
    for manifest in manifests:
        if _is_builtin(manifest) and (problem := _strictly(json.dumps(manifest))):
            yield Refusal("builtin", name(manifest), problem)


def custom(manifests: Sequence[Manifest]) -> Iterator[Refusal]:
    for manifest in manifests:
        if (manifest.get("apiVersion"), manifest.get("kind")) in schemas():
            for problem in _by_crd(json.dumps(manifest)):
                yield Refusal("custom", name(manifest), problem)


def pods(manifests: Sequence[Manifest]) -> Iterator[Refusal]:
    for template in templates(manifests):
        if template.owner.get("kind") != "Pod":
            metadata = {"name": "lifted", **template.metadata}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.spec}
            if problem := _strictly(json.dumps(pod)):
                yield Refusal("pod", name(template.owner), problem)


def serve(manifests: Sequence[Manifest]) -> Iterator[Refusal]:
    from ray.serve.schema import ServeDeploySchema

    try:
        for owner, document in serve_configs(manifests):
            for problem in _unknown_fields(document):
                yield Refusal("serve", name(owner), problem)
            try:
                ServeDeploySchema.model_validate(document)
            except ValueError as error:
                yield Refusal("serve", name(owner), " ".join(str(error).split()))
    except yaml.YAMLError as error:
        yield Refusal("serve", "", f"serveConfigV2 is not YAML: {error}")


def _unknown_fields(document: Manifest) -> Iterator[str]:
    """Ray's schemas pass over fields that they do not know."""
    from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    parts = [(ServeDeploySchema, document)]
    for application in document.get("applications") or []:
        parts.append((ServeApplicationSchema, application))
        for deployment in application.get("deployments") or []:
            parts.append((DeploymentSchema, deployment))
            parts.append((RayActorOptionsSchema, deployment.get("ray_actor_options") or {}))
    for schema, fields in parts:
        for field in fields.keys() - schema.model_fields.keys():
            yield f"{schema.__name__} has no field '{field}'"


def name(manifest: Manifest) -> str:
    return f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"


# Of Ray and of options: GitOps tools compare them with what the API server has.
WRITTEN_OUT = (*RAY_KINDS, "ExternalSecret", "Certificate", "AlertmanagerConfig")


def applied_again(manifest: Manifest) -> Iterator[str]:
    """Places at which an object is not as CRD and operator write it, so that a second apply conflicts or drifts."""
    if (manifest.get("apiVersion"), manifest.get("kind")) in schemas() and manifest["kind"] in WRITTEN_OUT:
        schema = schemas()[manifest["apiVersion"], manifest["kind"]]["properties"]["spec"]
        live = {**manifest, "spec": _with_defaults(manifest["spec"], schema)}
        yield from differences(manifest, written_back(live))


def _with_defaults(node: Any, schema: dict[str, Any]) -> Any:
    """As an API server fills them in."""
    if isinstance(node, list):
        return [_with_defaults(one, schema.get("items") or {}) for one in node]
    if not isinstance(node, dict):
        return node
    known = schema.get("properties") or {}
    found = {key: _with_defaults(value, known.get(key) or {}) for key, value in node.items()}
    defaults = {key: one["default"] for key, one in known.items() if "default" in one and key not in found}
    return found | copy.deepcopy(defaults)


def has_schema(manifest: Manifest) -> bool:
    """Whether some schema here says what such an object looks like."""
    return _is_builtin(manifest) or (manifest.get("apiVersion"), manifest.get("kind")) in schemas()


def _is_builtin(manifest: Manifest) -> bool:
    group = str(manifest.get("apiVersion")).rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and group in (
        "networking.k8s.io", "scheduling.k8s.io", "rbac.authorization.k8s.io", "storage.k8s.io",
        "admissionregistration.k8s.io", "apiextensions.k8s.io",
    ))  # fmt: skip


@cache  # each call reads 1.6 MB of schemas, and most objects of the bad sets are the good ones
def _strictly(manifest: str) -> str:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(json.loads(manifest), KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return str(getattr(error, "message", error))[:300]
    return ""


@cache
def _by_crd(manifest: str) -> tuple[str, ...]:
    document = json.loads(manifest)
    errors = _validator(document["apiVersion"], document["kind"]).iter_errors(document)
    return tuple(f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors)


@cache
def _validator(api_version: str, kind: str) -> Any:
    from jsonschema import Draft7Validator

    return Draft7Validator(schemas()[api_version, kind])
