"""Scripts and the image: linted, and dry runs that touch nothing and say what they would do, in the right order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s import lint
from tests.k8s.checks import ROOT

TOOLS = [pytest.param(name, id=name) for name in lint.commands()]


@pytest.mark.parametrize("name", TOOLS)
def test_a_linter_finds_nothing(name: str) -> None:
    if (tool := lint.tool(name)) is None:
        pytest.skip(f"{name} is not here")
    done = subprocess.run([tool, *lint.commands()[name]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dry_run(script: str, *arguments: str, tmp_path: Path) -> str:
    """What a script says with --dry-run; with tools that fail if they are called."""
    calls = tmp_path / "tools"
    calls.mkdir()
    for name in ("aws", "eksctl", "helm", "kubectl", "docker", "kind"):
        (calls / name).write_text(f'#!/bin/sh\necho "{name} was called: $*" >&2\nexit 99\n')
        (calls / name).chmod(0o755)
    path = f"{calls}:{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {**os.environ, "PATH": path, "BUILD": str(tmp_path / "build"), "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "cluster" / script), *arguments, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "was called" not in done.stderr
    return done.stdout


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_down_ends_ray_before_redis_operator_and_namespace(tmp_path: Path) -> None:
    said = dry_run("down.sh", tmp_path=tmp_path)
    assert in_order(
        said, "delete rayservices", "no rayclusters", "delete statefulsets", "uninstall kuberay", "delete namespace"
    )


def test_down_ends_what_owns_billed_things_before_what_removes_them(tmp_path: Path) -> None:
    said = dry_run("down.sh", tmp_path=tmp_path)
    assert in_order(said, "delete ingresses", "uninstall aws-load-balancer", "eksctl delete cluster")
    assert in_order(said, "delete persistentvolumeclaims", "no persistentvolumes", "eksctl delete cluster")
    assert in_order(said, "delete nodepools", "no nodeclaims", "eksctl delete cluster", "describe-instances")


def test_down_can_keep_the_cluster(tmp_path: Path) -> None:
    assert "eksctl delete" not in dry_run("down.sh", "--keep-cluster", tmp_path=tmp_path)


def test_up_makes_things_in_the_order_in_which_they_need_each_other(tmp_path: Path) -> None:
    said = dry_run("up.sh", tmp_path=tmp_path)
    assert in_order(
        said, "eksctl create", "node-pools.yaml", "<storage>", "kuberay/kuberay-operator", "wait rayservice"
    )
    assert in_order(said, "build/base.yaml", "secret generic serve-app-keys", "docker build", "wait rayservice")


def test_up_leaves_karpenters_tools_out_under_auto_mode(tmp_path: Path) -> None:
    said = dry_run("up.sh", "--auto-mode", tmp_path=tmp_path)
    assert "auto-mode/cluster.yaml" in said
    assert "gpu-operator" not in said
    assert "aws-load-balancer-controller" not in said


def test_up_shows_no_secret(tmp_path: Path) -> None:
    assert not re.search(r"[0-9a-f]{32}", dry_run("up.sh", tmp_path=tmp_path))


@pytest.mark.parametrize("script", ["verify.sh", "cost.sh"])
def test_looking_changes_nothing(script: str, tmp_path: Path) -> None:
    said = dry_run(script, tmp_path=tmp_path)
    assert not re.search(r"\b(delete|apply|create|uninstall|upgrade)\b", said)


def test_the_image_has_what_kuberays_probes_call() -> None:
    text = (ROOT / "cluster/Dockerfile").read_text()
    assert re.search(r"apt-get install .*\bbash wget\b", text)


def test_the_image_runs_as_the_user_that_pods_name() -> None:
    from serve_app.k8s.pods import HOME, USER

    text = (ROOT / "cluster/Dockerfile").read_text()
    assert text.count(f"USER {USER}\n") == 2
    assert f"useradd --uid {USER}" in text
    assert f"WORKDIR {HOME}" in text


def test_versions_are_typed_once() -> None:
    """KubeRay's and Karpenter's, in eksctl's file and in the charts' list."""
    versions = dict(re.findall(r"^(\w+)_VERSION=(\S+)", (ROOT / "cluster/helm/versions.env").read_text(), re.MULTILINE))
    assert f"version: {versions['KARPENTER']}" in (ROOT / "cluster/eks/cluster.yaml").read_text()


def test_the_operator_watches_every_installations_namespace() -> None:
    assert "\nwatchNamespace:" not in (ROOT / "cluster/helm/kuberay.yaml").read_text()


def test_the_image_copies_what_its_context_has() -> None:
    text = (ROOT / "cluster/Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
