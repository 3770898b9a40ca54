"""What is right in a config file is accepted, however unusual; what is wrong in any field of it is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.k8s.ray_service import yaml_text
from serve_app.k8s.serve_config import serve_config
from serve_app.k8s.values import Values
from serve_app.mistakes import dotted, sharpest
from serve_app.serving.apps import DEPLOYMENTS
from serve_app.serving.launch.applications import document_mistakes
from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.wiring import Wiring, missing_applications
from tests.serving.launch.conftest import ENGINE, POLICY, REPLICA, REPLICAS, ROOT, SCALING, Check

PRESETS = ROOT / "serve_app" / "workloads" / "icm" / "presets"


@pytest.mark.parametrize("name", ["config.yaml", "config.gpu.yaml", "config.two-models.yaml", "serve_app/config.yaml"])
def test_the_shipped_files_have_no_mistakes(name: str) -> None:
    ServeConfig.load(ROOT / name)


@pytest.mark.parametrize("preset", sorted(Values.load(ROOT / "k8s" / "values.yaml").presets))
def test_every_rendering_for_kubernetes_has_no_mistakes(preset: str, tmp_path: Path) -> None:
    values = Values.load(ROOT / "k8s" / "values.yaml")
    path = tmp_path / f"{preset}.yaml"
    path.write_text(yaml_text(serve_config(values, values.preset(preset), ROOT)))
    loaded = ServeConfig.load(path)
    assert loaded.engines


@pytest.mark.parametrize(
    "preset", sorted((ROOT / "serve_app/workloads/icm/presets").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_packaged_preset_has_no_mistakes(preset: Path) -> None:
    ServeConfig.load(preset)


RIGHT: list[list[tuple[str, Any]]] = [
    [(f"{REPLICA}.num_replicas", "auto")],
    [(f"{REPLICA}.num_replicas", None), (f"{REPLICA}.autoscaling_config", SCALING)],
    [(f"{REPLICA}.num_replicas", None), (f"{REPLICA}.autoscaling_config",
     SCALING | {"min_replicas": 0, "policy": {"policy_function": POLICY.replace(":", ".")}})],
    [(f"{REPLICA}.ray_actor_options", {"num_cpus": 0.5, "resources": {"x": 1}, "label_selector": {"a": "b"}})],
    [(f"{REPLICA}.logging_config", {"log_level": "DEBUG"})],
    [(f"{REPLICAS}.runtime_env", {"env_vars": {"A": "b"}})],
    [("http_options.request_timeout_s", 30)],
    [(f"{ENGINE}.max_model_len", 8192)],
    [(f"{ENGINE}.max_model_len", -1)],
    [(f"{ENGINE}.served_model_name", ["a", "b"])],
    [(f"{ENGINE}.dtype", "float32")],
    [(f"{ENGINE}.compilation_config", {"mode": 3, "cudagraph_mode": "PIECEWISE", "pass_config": {}})],
    [(f"{ENGINE}.speculative_config", {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4})],
    [(f"{ENGINE}.chat_template", "{{ messages[0].content }}")],
    [(f"{ENGINE}.override_generation_config", {"temperature": 0.1})],
    [(f"{ENGINE}.hf_overrides", {"max_position_embeddings": 16384}), (f"{ENGINE}.max_model_len", 16384)],
]  # fmt: skip


@pytest.mark.parametrize("edits", RIGHT, ids=lambda edits: str(edits[-1])[-50:])
def test_what_is_right_is_accepted(check: Check, edits: list[tuple[str, Any]]) -> None:
    check(*edits)


def test_somebody_elses_application_beside_ours_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_of_mine.py").write_text(
        "from ray import serve\n\n@serve.deployment\nclass Echo:\n    pass\n\napp = Echo.bind()\n\n"
        "def build(args: dict):\n    return app\n"
    )
    monkeypatch.chdir(tmp_path)
    document = yaml.safe_load((ROOT / "config.yaml").read_text())
    own = [{"name": one, "route_prefix": f"/{one}", "import_path": f"echo_of_mine:{one}"} for one in ("app", "build")]
    document["applications"] += own
    assert list(document_mistakes(document)) == []
    own[0]["import_path"] = "echo_of_mine:ap"
    (mistake,) = document_mistakes(document)
    assert str(mistake) == "applications[4].import_path: echo_of_mine has no 'ap'; did you mean 'app'?"


def test_deployments_that_may_be_named_are_those_that_the_builders_make() -> None:
    from serve_app.serving import apps
    from serve_app.settings import AccessSettings, DriverSettings, ModelsSettings, ReplicaSettings, SimulatedSettings

    settings: dict[str, Any] = {
        "replicas": ReplicaSettings(simulated=SimulatedSettings()),
        "populations": DriverSettings(),
        "files": DriverSettings(),
        "batches": AccessSettings(),
        "models": ModelsSettings(applications=({"name": "a"},)),
    }
    for builder, names in DEPLOYMENTS.items():
        deployment = getattr(apps, builder)(settings[builder])._bound_deployment
        assert (deployment.name,) == names
        # So that `user_config` is refused for a reason.
        assert not hasattr(deployment.func_or_class, "reconfigure")


def fields(document: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    for part, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*above, part)
        if isinstance(value, dict | list):
            yield from fields(value, (*above, part))


def test_every_field_of_the_shipped_files_is_named_where_it_is_misspelt() -> None:
    tried = 0
    for name in ("config.yaml", "config.gpu.yaml", "config.two-models.yaml"):
        document = yaml.safe_load((ROOT / name).read_text())
        for *above, field in list(fields(document)):
            if isinstance(field, int) or "engine" in above:  # vLLM's are another test's
                continue
            at = document
            for part in above:
                at = at[part]
            wrong = field[:-1]
            at[wrong] = at.pop(field)
            found = {str(one) for one in document_mistakes(document)}
            said = f"{dotted((*above, wrong))}: there is no field of this name"
            assert [one for one in found if one.startswith(said) and f"'{field}'" in one], found
            at[field] = at.pop(wrong)
            tried += 1
        assert list(document_mistakes(document)) == []
    assert tried > 80


GARBAGE: tuple[Any, ...] = (None, True, -3, 1.5, "x", "", [], {}, [None], {"a": 1}, 10**30)


def test_no_value_of_any_field_is_a_traceback() -> None:
    """Whatever stands there: a mistake, or what is right."""
    document = yaml.safe_load((ROOT / "config.two-models.yaml").read_text())
    for *above, field in list(fields(document)):
        at = document
        for part in above:
            at = at[part]
        right = at[field]
        for at[field] in GARBAGE:
            found = sharpest([*document_mistakes(document), *missing_applications(document)])
            assert not any("cannot be read" in one.problem for one in found)
            _ = found or list(Wiring.of(document).mistakes())
        at[field] = right
