"""A server without a model for application tests, from any config file.

All but the engine is real: routes, populations, files and batches, keys and limits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.wiring import served_names
from serve_app.settings import REPLICA_DEPLOYMENT

REPLICAS_PATH = "serve_app.serving.apps:replicas"
AT_ONCE = {"step_ms": 0, "prefill_ms_per_token": 0}
# Otherwise read from the model's files.
MAX_MODEL_LEN = 131_072


def write_simulated(config: Path, target: Path) -> Path:
    """Write the config file with simulated engines to `target`, which is returned. Raises BadSettings where
    `ServeConfig` would.
    """
    ServeConfig.load(config)
    document = yaml.safe_load(config.read_text())
    simulate(document)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(document, sort_keys=False))
    return target


def simulate(document: dict[str, Any]) -> None:
    """Give every replica in a config document a simulated engine under its model's names, without a device. Present
    simulator settings stay.
    """
    for application in document.get("applications") or []:
        if application.get("import_path") == REPLICAS_PATH:
            _simulate(application)


def _simulate(application: dict[str, Any]) -> None:
    args = application.setdefault("args", {})
    options = args.get("engine") or {}
    engine = {
        "max_model_len": options.get("max_model_len") or MAX_MODEL_LEN,
        "tensor_parallel_size": options.get("tensor_parallel_size") or 1,
    }
    if names := served_names(options):
        engine["served_model_name"] = list(names)
    args.update(engine=engine, simulated=args.get("simulated") or dict(AT_ONCE))
    for deployment in application.get("deployments") or []:
        if deployment.get("name") == REPLICA_DEPLOYMENT:
            deployment["ray_actor_options"] = {"num_cpus": 0}
