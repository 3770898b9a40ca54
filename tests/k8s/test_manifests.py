"""Good manifests pass every check, bad ones are refused for their reason; `make k8s-check` prints it as figures."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serve_app.k8s.rules import RULES
from tests.k8s import bad, checks, sets

needs_kubectl = pytest.mark.skipif(sets.KUBECTL is None, reason=sets.WITHOUT_KUBECTL)
BAD = bad.all_bad()


@needs_kubectl
@pytest.mark.parametrize("name", sets.overlays())
def test_an_overlay_passes_every_check(name: str) -> None:
    assert [str(refusal) for refusal in checks.refusals(sets.overlay(name))] == []


@pytest.mark.parametrize("path", sets.cluster_files(), ids=lambda path: str(path.relative_to(sets.CLUSTER)))
def test_what_cluster_applies_passes_every_check(path: Path) -> None:
    assert [str(refusal) for refusal in checks.refusals(checks.load(path.read_text()), whole=False)] == []


@needs_kubectl
@pytest.mark.parametrize("name", ["incremental-upgrade"])
def test_a_component_can_be_added_to_the_eks_overlay(name: str, tmp_path: Path) -> None:
    root = tmp_path / "k8s"
    subprocess.run(["cp", "-r", str(sets.K8S), str(root)], check=True)
    overlay = root / "overlays/eks/kustomization.yaml"
    overlay.write_text(f"{overlay.read_text()}components: [../../components/{name}]\n")
    found = checks.load(sets.kustomize(overlay.parent))
    assert [str(refusal) for refusal in checks.refusals(found)] == []


@needs_kubectl
def test_monitoring_passes_every_check() -> None:
    found = checks.load(sets.kustomize(sets.K8S / "monitoring"))
    assert [str(refusal) for refusal in checks.refusals(found, whole=False)] == []


@needs_kubectl
def test_no_object_goes_unchecked() -> None:
    objects = [manifest for name in sets.overlays() for manifest in sets.overlay(name)]
    assert [checks.name(manifest) for manifest in objects if not checks.has_schema(manifest)] == []


@needs_kubectl
@pytest.mark.parametrize("one", BAD, ids=lambda one: one.path.stem)
def test_a_bad_manifest_is_refused_for_its_reason(one: bad.Bad) -> None:
    found = one.refusals()
    assert one.is_refused_rightly(found), f"expected {one.check}: {one.reason}; found {[str(r) for r in found]}"


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    assert RULES.keys() - {one.check for one in BAD} == set()


def test_there_are_bad_manifests_for_every_kind_of_check() -> None:
    assert {"builtin", "custom", "pod", "serve"} <= {one.check for one in BAD}
    assert len(BAD) >= 40
