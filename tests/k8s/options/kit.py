"""Installations with options."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serve_app.k8s.rules.manifests import Manifest, Template, templates
from tests.k8s import checks, sets


def installation(**mine: Any) -> list[Manifest]:
    """Raises BadSettings."""
    with TemporaryDirectory() as folder:
        return sets.made(Path(folder), {"run": {"server": "8b-tp2"}, **mine})


@cache
def all_options() -> list[Manifest]:
    return sets.overlay("options")


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """By name."""
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def ray_pods(manifests: list[Manifest], kind: str = "RayService") -> list[Template]:
    return [template for template in templates(manifests) if template.owner["kind"] == kind and template.place]


def problems(manifests: list[Manifest]) -> list[str]:
    return [str(refusal) for refusal in checks.refusals(manifests)]
