"""The values file, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.errors import BadSettings
from serve_app.k8s.render import OVERLAYS, WAYS, render, rendered_files
from serve_app.k8s.rules.manifests import Manifest, serve_configs, templates
from serve_app.k8s.serve_config import serve_config
from serve_app.k8s.standalone import flags
from serve_app.k8s.values import Values
from serve_app.serving.haproxy.environment import variables
from serve_app.serving.launch.config import ServeConfig
from serve_app.spec import JobSpec
from tests.k8s.checks import ROOT, load


@pytest.fixture(scope="module")
def values() -> Values:
    return Values.load(ROOT / "k8s/values.yaml")


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def edited(tmp_path: Path, edit: Any) -> Path:
    document = yaml.safe_load((ROOT / "k8s/values.yaml").read_text())
    edit(document)
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def server(values: Values, preset: str) -> list[Manifest]:
    return load(render(values, "server", preset))


def test_the_committed_files_are_what_the_values_make(values: Values) -> None:
    stale = [str(path) for path, text in rendered_files(values).items() if (ROOT / path).read_text() != text]
    assert stale == [], "run `serve-app k8s render --write`"


def test_every_overlay_is_in_the_repository() -> None:
    assert all((ROOT / overlay.folder / "kustomization.yaml").exists() for overlay in OVERLAYS)


@pytest.mark.parametrize("preset", ["cpu", "8b-l4", "8b-a10g", "8b-tp2", "70b-tp8", "405b"])
def test_every_preset_renders_and_keeps_the_rules(values: Values, preset: str) -> None:
    assert server(values, preset)


@pytest.mark.parametrize("preset", ["cpu", "8b-tp2", "70b-tp8"])
def test_the_serve_config_is_one_that_our_settings_accept(values: Values, preset: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(serve_config(values, values.preset(preset))))
    loaded = ServeConfig.load(path)
    assert loaded.engines[0].settings.engine["tensor_parallel_size"] == values.preset(preset).tensor_parallel
    assert loaded.replicas == values.preset(preset).replicas.min


def test_what_config_yaml_says_of_the_engine_is_kept(values: Values) -> None:
    own = yaml.safe_load((ROOT / "config.yaml").read_text())["applications"][0]["args"]["engine"]
    assert serve_config(values, values.preset("cpu"))["applications"][0]["args"]["engine"] == own


@pytest.mark.parametrize("preset", ["8b-l4", "8b-tp2", "70b-tp8"])
def test_a_replica_has_exactly_the_gpus_of_its_pod(values: Values, preset: str) -> None:
    (service,) = [m for m in server(values, preset) if m["kind"] == "RayService"]
    ((_, document),) = serve_configs([service])
    ranks = values.preset(preset).tensor_parallel
    assert document["applications"][0]["deployments"][0]["ray_actor_options"]["num_gpus"] == ranks
    (workers,) = [t for t in templates([service]) if t.labels.get("serve-app/part") == "replica"]
    assert workers.main["resources"]["limits"]["nvidia.com/gpu"] == str(ranks)


def test_pods_have_the_environment_that_serve_run_gets(values: Values) -> None:
    (service,) = [m for m in server(values, "cpu") if m["kind"] == "RayService"]
    for template in templates([service]):
        given = {entry["name"]: entry.get("value") for entry in template.main["env"]}
        assert given.items() >= variables({}).items()


def test_pods_may_drain_as_long_as_replicas_do(values: Values) -> None:
    (service,) = [m for m in server(values, "8b-tp2") if m["kind"] == "RayService"]
    assert all(t.spec["terminationGracePeriodSeconds"] >= values.drain_s for t in templates([service]))


def test_a_small_preset_has_no_budget_that_blocks_drains(values: Values) -> None:
    assert not [m for m in server(values, "8b-l4") if m["kind"] == "PodDisruptionBudget"]


def test_the_population_of_the_rayjob_is_one_that_the_driver_takes(values: Values) -> None:
    assert JobSpec.model_validate(values.population).generator is not None


def test_options_become_arguments_of_vllm() -> None:
    options = {"model": "m", "max_model_len": 8, "enforce_eager": True, "enable_prefix_caching": False, "a": {"b": 1}}
    assert flags({**options, "none": None}) == [
        "m", "--port=8000", "--max-model-len=8", "--enforce-eager", "--no-enable-prefix-caching", '--a={"b": 1}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("way", "preset", "problem"),
    [
        ("server", "7b", "'7b' is unknown: use one of cpu, 8b-l4"),
        ("helm", "cpu", "'helm' is unknown"),
        ("vllm", "cpu", "needs a preset with GPUs"),
        ("vllm", "405b", "needs 2"),
    ],
)
def test_what_does_not_go_together_is_said(values: Values, way: str, preset: str, problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        render(values, way, preset)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d: d["presets"]["8b-l4"].update(gpu="b300"), "'b300' is not one of"),
        (lambda d: d["presets"]["8b-l4"].pop("revision"), "revision is missing"),
        (lambda d: d["presets"]["8b-l4"].update(revision="main"), "presets.8b-l4.revision"),
        (lambda d: d["presets"]["cpu"].update(replicas={"min": 3, "max": 2}), "min 3 is above max 2"),
        (lambda d: d.update(drain=5), "drain: Extra inputs"),
    ],
)
def test_a_wrong_value_names_its_field(tmp_path: Path, edit: Any, problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        Values.load(edited(tmp_path, edit))


def test_an_option_that_breaks_a_rule_is_not_rendered(tmp_path: Path) -> None:
    values = Values.load(edited(tmp_path, lambda d: d.update(store="runs")))
    with pytest.raises(BadSettings, match=r"is in the container, and goes with it.*\[store\]"):
        render(values, "server", "8b-tp2")


def test_a_store_by_url_needs_no_volume(tmp_path: Path) -> None:
    values = Values.load(edited(tmp_path, lambda d: d.update(store="s3://bucket/runs")))
    assert "store: s3://bucket/runs" in render(values, "server", "8b-tp2")


def test_render_prints_yaml_alone() -> None:
    result = CliRunner().invoke(app, ["k8s", "render", "--preset", "cpu"])
    assert result.exit_code == 0, result.output
    assert [m["kind"] for m in load(result.stdout)] == ["RayService"]


def test_serve_config_prints_what_serve_run_takes() -> None:
    result = CliRunner().invoke(app, ["k8s", "render", "--preset", "cpu", "--serve-config"])
    assert len(yaml.safe_load(result.stdout)["applications"]) == 4


def test_every_way_has_an_overlay() -> None:
    assert {way for overlay in OVERLAYS for way in overlay.values(ROOT).run} | {"download"} == set(WAYS)
