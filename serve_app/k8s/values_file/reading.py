"""A values file as it is read, merged and complained of; `values.py` has its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from serve_app.bounded_yaml import check_size
from serve_app.errors import BadSettings

# Merged by field; other mappings are replaced.
LAID_OVER = ("images", "storage", "redis", "ingress", "tls", "gpus", "presets")


def read(path: Path) -> dict[str, Any]:
    """Raises BadSettings for a file that cannot be read or has no fields."""
    try:
        text = path.read_text()
        check_size(text)
        document = yaml.safe_load(text)
    except OSError as error:
        raise BadSettings(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, or too large
        raise BadSettings(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict | None):
        raise BadSettings(f"{path} is not a values file: it has no fields")
    found: dict[str, Any] = document or {}
    found.pop("$schema", None)
    return found


def with_configs_beside(path: Path, mine: dict[str, Any]) -> dict[str, Any]:
    """Full paths for Serve config files beside the values file."""
    for preset in (mine.get("presets") or {}).values():
        if isinstance(preset, dict) and (beside := path.parent / str(preset.get("config"))).is_file():
            preset["config"] = beside
    return mine


def laid_over(defaults: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    found = {**defaults, **mine}
    for field in LAID_OVER:
        if isinstance(mine.get(field), dict):
            found[field] = {**defaults[field], **mine[field]}
    return found


def problem(path: Path, error: Any) -> str:
    """`mine.yaml: images.registri: Extra inputs are not permitted; did you mean 'registry'?`."""
    place = [".".join(map(str, error["loc"]))] if error["loc"] else []
    return ": ".join([str(path), *place, error["msg"].removeprefix("Value error, ")])
