"""What is rendered is what the operator writes back: a second apply changes nothing and conflicts with nobody."""

from __future__ import annotations

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


@pytest.mark.skipif(sets.KUBECTL is None, reason=sets.WITHOUT_KUBECTL)
def test_rendered_objects_have_the_defaults_of_the_crds() -> None:
    rays = [m for name in sets.overlays() for m in sets.overlay(name) if m["kind"].startswith("Ray")]
    assert {m["kind"] for m in rays} == {"RayService", "RayJob"}
    assert [change for ray in rays for change in checks.applied_again(ray)] == []


@pytest.mark.parametrize(
    ("change", "place"),
    [({"scaleStrategy": None}, "scaleStrategy"), ({"numOfHosts": None}, "numOfHosts")],
)
def test_what_a_second_apply_would_change_is_found(change: dict[str, Any], place: str) -> None:
    (service,) = [m for m in sets.overlay("eks") if m["kind"] == "RayService"]
    group = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    for name in change:
        del group[name]
    assert f"spec.rayClusterConfig.workerGroupSpecs[0].{place}" in list(checks.applied_again(service))
