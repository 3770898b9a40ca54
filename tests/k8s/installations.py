"""Installations made for tests: values over the defaults, in memory or as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from serve_app.k8s.render import installation
from serve_app.k8s.rules.manifests import Manifest
from serve_app.k8s.values import Values
from tests.k8s.checks import load

# Every way that goes beside a server on the same GPUs.
EVERY_WAY = {"server": "8b-tp2", "vllm": "8b-tp2", "vllm-job": "8b-l4", "population": "8b-tp2", "kernels": "8b-l4"}
# Of `make k8s-check`: two in one namespace, one of the same name in another, and the defaults.
NEIGHBOURS: tuple[dict[str, Any], ...] = (
    {"name": "prod", "namespace": "llm", "run": EVERY_WAY},
    {"name": "second", "namespace": "llm", "create_namespace": False, "run": EVERY_WAY},
    {"name": "prod", "namespace": "llm-dev", "run": EVERY_WAY},
    {"name": "serve-app", "namespace": "serve-app", "run": EVERY_WAY},
)


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
