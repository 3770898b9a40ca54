"""Any config file without its model, and the one for the tests of applications."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.errors import BadSettings
from serve_app.serving.launch.config import ServeConfig, set_store
from serve_app.serving.launch.simulated import simulate, write_simulated

ROOT = Path(__file__).parents[3]


def loaded(document: dict[str, Any], folder: Path, port: int) -> ServeConfig:
    document["http_options"]["port"] = port
    set_store(document, str(folder / "runs"))
    ServeDeploySchema.model_validate(document)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    config = ServeConfig.load(path)
    config.check()
    return config


@pytest.mark.parametrize("name", ["config.yaml", "config.gpu.yaml", "config.two-models.yaml"])
def test_a_simulated_config_keeps_its_names_and_needs_no_device(name: str, tmp_path: Path, free_port: int) -> None:
    document = yaml.safe_load((ROOT / name).read_text())
    real = ServeConfig.load(ROOT / name)
    simulate(document)
    config = loaded(document, tmp_path, free_port)
    assert [engine.models for engine in config.engines] == [engine.models for engine in real.engines]
    assert [engine.replicas for engine in config.engines] == [engine.replicas for engine in real.engines]
    for engine in config.engines:
        assert engine.settings.simulated is not None
        assert "model" not in engine.settings.engine
    actors = [deployment.get("ray_actor_options") for app in document["applications"]
              for deployment in app["deployments"] if deployment["name"] == "Replica"]  # fmt: skip
    assert actors == [{"num_cpus": 0}] * len(real.engines)


def test_a_config_file_is_written_anew(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "simulated.yaml"
    assert write_simulated(ROOT / "config.yaml", target) == target
    assert ServeConfig.load(target).worked.settings.simulated is not None
    with pytest.raises(BadSettings, match=r"none\.yaml"):
        write_simulated(tmp_path / "none.yaml", target)


def test_adapters_are_models_and_settings_of_the_simulation_stay() -> None:
    args: dict[str, Any] = {
        "engine": {"model": "a/b", "lora_modules": ["c=/d"]},
        "simulated": {"step_ms": 3},
        "access": {},
    }
    document = {"applications": [{"import_path": "serve_app.serving.apps:replicas", "args": args}]}
    simulate(document)
    assert args["engine"]["served_model_name"] == ["a/b", "c"]
    assert args["simulated"] == {"step_ms": 3}
    assert "access" in args


def test_other_applications_stay_as_they_are() -> None:
    document = yaml.safe_load((ROOT / "config.yaml").read_text())
    before = [dict(application) for application in document["applications"][1:]]
    simulate(document)
    assert document["applications"][1:] == before
