"""Whether a JSON or YAML block is what the page says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def check_value(model: str, value: Any) -> None:
    """Raises what the model says is wrong with the value."""
    import msgspec
    from pydantic import BaseModel

    kind = models()[model]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        kind.model_validate(value)
    elif isinstance(kind, set):
        assert set(value) <= kind, f"unknown: {set(value) - kind}"
    else:
        msgspec.convert(value, kind)


def models() -> dict[str, Any]:
    """What `<!-- model: NAME -->` may name: a pydantic model, a msgspec struct, or the keys of a mapping."""
    from ray.serve.config import AutoscalingConfig

    from serve_app import settings
    from serve_app.driver.batches.record import BatchRequest
    from serve_app.fields import Frozen
    from serve_app.schema import Outcome
    from serve_app.spec import JobSpec, JobStatus, Provider
    from serve_app.workloads.ctr.people.bank import Bank

    line = {"rows", "ok", "failed", "replicas", "tp", "rows_per_s", "ctr", "cached_token_share", "wall_s", "dtype",
            "setup_s", "start_s", "run_s", "simulated", "people", "answered", "ctr_raw",
            "label_swap_bias_before", "label_swap_bias_after"}  # fmt: skip
    mine = {name: kind for name, kind in vars(settings).items() if isinstance(kind, type) and issubclass(kind, Frozen)}
    return {
        **mine,
        "JobSpec": JobSpec,
        "JobStatus": JobStatus,
        "Provider": Provider,
        "BatchRequest": BatchRequest,
        "Outcome": Outcome,
        "Bank": Bank,
        "AutoscalingConfig": AutoscalingConfig,
        "ErrorBody": {"error"},
        "ResultLine": line,
    }


def check_config(document: dict[str, Any], folder: Path) -> None:
    """A Serve config file, whole."""
    from serve_app.serving.launch.config import ServeConfig

    path = folder / "checked.yaml"
    path.write_text(yaml.safe_dump(document))
    ServeConfig.load(path)
