"""Schemas of the custom resources that we write, as strict JSON schema: a field that they do not know is an error.

`crds.json.xz` has KubeRay 1.7.0, Karpenter 1.14.1, the Prometheus operator (its AlertmanagerConfig of 0.83.0), Gateway
API 1.4.1, cert-manager 1.19.4, External Secrets 2.9.0 and eksctl's ClusterConfig, `gitops.json.xz` Argo CD 3.5.1's
Application and the Kustomization of Flux' kustomize-controller 1.9.4, without their descriptions (all Apache-2.0).
`python -m tests.k8s.schemas FOLDER [FILE]` makes one anew from a folder of CRDs and, if it is there,
eksctl-schema.json. CEL rules (x-kubernetes-validations) are not evaluated.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
FOLDER = Path(__file__).parent
EKSCTL = "eksctl.io/v1alpha5", "ClusterConfig"


@cache
def schemas() -> dict[tuple[str, str], Schema]:
    """By apiVersion and kind."""
    found: dict[str, Schema] = {}
    for path in sorted(FOLDER.glob("*.json.xz")):
        found |= json.loads(lzma.decompress(path.read_bytes()))
    return {(name.rpartition("/")[0], name.rpartition("/")[2]): schema for name, schema in found.items()}


def pack(folder: Path) -> bytes:
    """A file, from CRDs as they are published and eksctl's schema."""
    import yaml

    class Loader(yaml.SafeLoader):
        """With YAML 1.1's `=`, which Alertmanager's matchers have among their values."""

    Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: str(node.value))
    found: dict[str, Schema] = {}
    for path in sorted(folder.glob("*.yaml")):
        for crd in yaml.load_all(path.read_text(), Loader):
            if crd and crd.get("kind") == "CustomResourceDefinition":
                for version in crd["spec"]["versions"]:
                    name = f"{crd['spec']['group']}/{version['name']}/{crd['spec']['names']['kind']}"
                    found[name] = of_crd(version["schema"]["openAPIV3Schema"])
    if (eksctl := folder / "eksctl-schema.json").exists():
        found["/".join(EKSCTL)] = _plain(json.loads(eksctl.read_text()))
    return lzma.compress(json.dumps(found, separators=(",", ":"), sort_keys=True).encode(), preset=9)


def of_crd(schema: Schema) -> Schema:
    """Strict JSON schema of a CRD's version."""
    found: Schema = _strict(_plain(schema))
    found["properties"] |= {"metadata": {"type": "object"}}
    for name in ("apiVersion", "kind"):
        found["properties"].setdefault(name, {"type": "string"})
    return found


def _plain(node: Any) -> Any:
    """Without descriptions; a property of that name stays."""
    if isinstance(node, list):
        return [_plain(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {}
    for key, value in node.items():
        if key == "properties":
            found[key] = {name: _plain(one) for name, one in value.items()}
        elif key in ("default", "enum"):
            found[key] = value
        elif not (key == "description" and isinstance(value, str)):
            found[key] = _plain(value)
    return found


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {key: value if key in ("default", "enum") else _strict(value) for key, value in node.items()}
    if found.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    is_open = "additionalProperties" in found or found.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(found.get("properties"), dict) and found.get("type") == "object" and not is_open:
        found["additionalProperties"] = False
    if isinstance(found.get("required"), list):  # the API server fills defaults before it validates
        properties = found.get("properties") or {}
        found["required"] = [name for name in found["required"] if "default" not in (properties.get(name) or {})]
    if found.get("nullable") and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    found.pop("format", None)
    return found
