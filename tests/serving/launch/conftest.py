"""A config file with some fields set, checked as `serve-app validate` does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.serving.launch.config import ServeConfig, set_store

ROOT = Path(__file__).parents[3]
REPLICAS, DRIVER, FILES, BATCHES = (f"applications[{at}]" for at in range(4))
REPLICA = f"{REPLICAS}.deployments[0]"
ENGINE = f"{REPLICAS}.args.engine"
POLICY = "serve_app.serving.autoscaling:BacklogPolicy"
SCALING = {"min_replicas": 1, "max_replicas": 2}
Check = Callable[..., None]


def put(document: Any, place: str, value: Any) -> None:
    """Set the field at `applications[0].deployments[0].name`."""
    *above, last = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", place)]
    for part in above:
        document = document[part]
    document[last] = value


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., None]:
    """config.yaml with some fields set, checked as `serve-app validate` does."""

    def make(*edits: tuple[str, Any], name: str = "config.yaml") -> None:
        document = yaml.safe_load((ROOT / name).read_text())
        set_store(document, str(tmp_path / "runs"))
        for place, value in edits:
            put(document, place, value)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        ServeConfig.load(path).check(port=False)

    return make
