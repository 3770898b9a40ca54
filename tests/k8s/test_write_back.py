"""What is rendered is what the operator writes back: a second apply changes nothing and conflicts with nobody."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from serve_app.k8s.write_back import canonical_quantity, differences, written_back
from tests.k8s import checks, sets


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("1000m", "1"), ("250m", "250m"), ("0.5", "500m"), ("1.5", "1500m"), (2, "2"), (0.1, "100m"), ("0", "0"),
        ("1024Mi", "1Gi"), ("1.5Gi", "1536Mi"), ("0.5Gi", "512Mi"), ("0.5Ki", "512"), ("1500Mi", "1500Mi"),
        ("4000", "4k"), ("1e3", "1e3"), ("2000e3", "2e6"), ("1000Ki", "1000Ki"), ("100n", "100n"), ("1u", "1u"),
        ("-1000m", "-1"),
    ],
)  # fmt: skip
def test_a_quantity_is_written_as_kubernetes_does(written: Any, canonical: str) -> None:
    assert canonical_quantity(written) == canonical


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1gi", "one"])
def test_what_is_no_quantity_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        canonical_quantity(text)


def test_writing_back_twice_changes_nothing_more() -> None:
    service = {"kind": "RayService", "spec": {"rayClusterConfig": {"headGroupSpec": {"template": {"spec": {
        "containers": [{"name": "h", "ports": [{"containerPort": 1}], "env": [{"name": "A", "value": ""}]}]}}},
        "workerGroupSpecs": [{"groupName": "g"}]}}}  # fmt: skip
    once = written_back(service)
    assert written_back(once) == once
    (group,) = once["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["scaleStrategy"] == {}
    assert list(differences(service, once)) == [
        "spec.rayClusterConfig.headGroupSpec.template.spec.containers[0].ports[0].protocol",
        "spec.rayClusterConfig.headGroupSpec.template.spec.containers[0].env[0].value",
        "spec.rayClusterConfig.headGroupSpec.template.spec.containers[0].resources",
        "spec.rayClusterConfig.headGroupSpec.template.metadata",
        *(f"spec.rayClusterConfig.workerGroupSpecs[0].{name}" for name in
          ("replicas", "minReplicas", "maxReplicas", "numOfHosts", "priority", "scaleStrategy")),
    ]  # fmt: skip


def with_defaults(node: Any, schema: dict[str, Any]) -> Any:
    """What an API server makes of an object by its CRD's defaults."""
    if isinstance(node, list):
        return [with_defaults(one, schema.get("items") or {}) for one in node]
    if not isinstance(node, dict):
        return node
    known = schema.get("properties") or {}
    found = {key: with_defaults(value, known.get(key) or {}) for key, value in node.items()}
    return found | {key: copy.deepcopy(one["default"]) for key, one in known.items()
                    if "default" in one and key not in found}  # fmt: skip


@pytest.mark.skipif(sets.KUBECTL is None, reason=sets.WITHOUT_KUBECTL)
@pytest.mark.skipif(checks.CRDS is None, reason=checks.WITHOUT_CRDS)
def test_rendered_objects_have_the_defaults_of_the_crds() -> None:
    rays = [m for name in sets.overlays() for m in sets.overlay(name) if m["kind"].startswith("Ray")]
    assert {m["kind"] for m in rays} == {"RayService", "RayJob"}
    for ray in rays:
        schema = checks.schema(ray["apiVersion"], ray["kind"])
        spec = with_defaults(ray["spec"], schema["properties"]["spec"])
        assert list(differences(ray["spec"], spec)) == []
