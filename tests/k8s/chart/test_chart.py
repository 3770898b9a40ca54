"""The Helm chart says what `serve-app k8s render` says, for any values."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.errors import BadSettings
from serve_app.k8s.chart.chart import FREE, chart
from serve_app.k8s.chart.objects import Part, file
from serve_app.k8s.rules.manifests import Manifest
from serve_app.k8s.values import Values
from tests.k8s import checks, lint
from tests.k8s.sets import EVERY_WAY, identity, made, written

HELM = lint.tool("helm")
pytestmark = pytest.mark.skipif(HELM is None, reason="helm is not here: run cluster/tools.sh")
DIGEST = "sha256:" + "a" * 64
CPU_STORAGE = {"storage_class": None, "size": "10Gi", "access": "ReadWriteOnce", "prepare": False}
FILES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "every-way": {"run": EVERY_WAY, "monitoring": True, "ingress": {"kind": "gateway", "host": "a.example.com"}},
    "cpu": {"run": {"server": "cpu"}, "storage": CPU_STORAGE, "ingress": {"kind": "none"}},
    "multi-node": {"run": {"server": "405b"}, "pod_security": "privileged", "monitoring": True},
    "named": {"name": "one", "namespace": "same", "create_namespace": True, "run": EVERY_WAY},
    "same-name": {"name": "same", "namespace": "same", "run": {"server": "70b-tp8"}},
    "longest-name": {"name": "n" + "-a" * 13, "run": {"server": "70b-tp8", "vllm-job": "8b-l4"}},
    "mirrors": {
        "images": {"registry": "r.example.com:5000/llm", "cuda": f"mine@{DIGEST}", "pull_secrets": ["one", "two"],
                   "redis": f"r.example.com/redis@{DIGEST}"},
        "run": {"server": "8b-a10g", "kernels": "8b-l4"},
    },
    "outside": {
        "redis": {"address": "rediss://r.example.com:6380"}, "store": "s3://bucket/runs", "population_store": "s3://b/p",
        "private_cidrs": ["10.0.0.0/8"], "run": {"server": "8b-l4", "population": "8b-l4"},
    },
    "claim": {"storage": {"claim": "theirs", "storage_class": None}, "drain_s": 3540, "deadline_s": 12345678},
    "beside": {"base": False, "run": {"population": "8b-l4"}, "population_store": "/data/deep/er"},
    "nothing": {"run": {}},
    "weights": {"run": {"download": "70b-tp8"}, "operator_namespace": "ops", "monitoring_namespace": "watch"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checks.ROOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(chart(Values.load(checks.ROOT / "k8s/values.yaml")), tmp_path_factory.mktemp("chart"))


def write(files: dict[Path, str], folder: Path) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def helm(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HELM), *map(str, arguments)], check=check, capture_output=True, text=True)


def by_helm(folder: Path, values: Path) -> list[Manifest]:
    done = helm("template", "serve-app", folder, "--namespace", "serve-app", "--values", values)
    return checks.load(done.stdout)


def sorted_out(manifests: list[Manifest]) -> dict[tuple[str, str, str], Manifest]:
    assert len({identity(manifest) for manifest in manifests}) == len(manifests)
    return {identity(manifest): manifest for manifest in manifests}


def test_the_chart_passes_helms_linter(folder: Path) -> None:
    for values in ({}, FILES["every-way"], FILES["cpu"]):
        done = helm("lint", "--strict", folder, "--values", written(folder.parent, values), check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_the_chart_makes_what_render_makes(folder: Path, tmp_path: Path, name: str) -> None:
    mine = {"create_namespace": False, **FILES[name]}
    assert sorted_out(by_helm(folder, written(tmp_path, mine))) == sorted_out(made(tmp_path, mine))


@pytest.mark.parametrize("seed", range(12))
def test_the_chart_makes_what_render_makes_of_any_values(folder: Path, tmp_path: Path, seed: int) -> None:
    mine = any_values(random.Random(seed))
    try:
        rendered = sorted_out(made(tmp_path, mine))
    except BadSettings as error:  # what only the rules of a whole installation see, Helm does not
        pytest.fail(f"these values are to be good ones: {error}")
    assert sorted_out(by_helm(folder, written(tmp_path, mine))) == rendered


def any_values(of: random.Random) -> dict[str, Any]:
    """Of every field that is set at install time, one of what it may be."""
    cpu = of.random() < 0.2
    storage = {
        "claim": of.choice([None, "theirs"]), "storage_class": of.choice([None, "fast"]), "prepare": of.random() < 0.5,
        "access": of.choice(["ReadWriteOnce", "ReadWriteMany"]) if cpu else "ReadWriteMany", "size": "3Ti",
    }  # fmt: skip
    one_node = ["8b-l4", "8b-a10g", "8b-tp2", "70b-tp8"]
    ways = {way: of.choice(one_node) for way in ("population", "vllm", "vllm-job", "kernels") if of.random() < 0.5}
    return {
        "name": of.choice(["a", "serve-app", "n" * 27]),
        "namespace": of.choice(["a", "serve-app", "b"]),
        "create_namespace": of.random() < 0.5,
        "monitoring": of.random() < 0.5,
        "private_cidrs": of.choice([["10.0.0.0/8"], ["10.0.0.0/8", "192.168.0.0/16"]]),
        "images": {"pull_secrets": of.choice([[], ["x"], ["x", "z"]]), "registry": of.choice(["", "r.example.com/a"])},
        "storage": storage,
        "redis": {"address": of.choice([None, "redis://r.example.com:7000"])},
        "ingress": {"kind": of.choice(["alb", "gateway", "none"]), "host": "llm.example.com", "gateway_class": "g"},
        "run": {"server": "cpu"} if cpu else {"server": of.choice(one_node), **ways},
        "store": of.choice(["/data/a", "/data/a/b", "gs://bucket/a"]),
        "population_store": of.choice(["/data/p", "/data/p/q", "s3://bucket/p"]),
        "drain_s": of.randint(1, 3540),
        "deadline_s": of.randint(1, 10**8),
    }


def test_name_and_namespace_are_the_releases_where_no_value_says_so(folder: Path, tmp_path: Path) -> None:
    done = helm("template", "llm", folder, "--namespace", "llm-prod")
    mine = {"name": "llm", "namespace": "llm-prod", "create_namespace": False}
    assert sorted_out(checks.load(done.stdout)) == sorted_out(made(tmp_path, mine))


def test_a_chart_of_a_values_file_has_its_presets_and_defaults(tmp_path: Path) -> None:
    preset = {"config": "config.gpu.yaml", "model": "org/m", "revision": "0" * 40, "gpu": "h100", "tensor_parallel": 4,
              "replicas": {"min": 2, "max": 3}}  # fmt: skip
    mine = {
        "presets": {"mine": preset}, "run": {"server": "mine"}, "create_namespace": False, "store": "/data/mine",
        "population": {"workload": "ctr/v1", "job_id": "p7", "labels": ["Yes", "No"],
                       "generator": {"name": "ctr", "arguments": {"ad": "A {{ brace }}", "platform": "f", "size": 9}}},
    }  # fmt: skip
    folder = write(chart(Values.load(written(tmp_path, mine))), tmp_path / "chart")
    done = helm("template", "serve-app", folder, "--namespace", "serve-app")
    assert sorted_out(checks.load(done.stdout)) == sorted_out(made(tmp_path, mine))
    more = {**mine, "run": {"population": "mine", "vllm": "mine"}}
    run = written(tmp_path / "chart", {"run": more["run"]})
    assert sorted_out(by_helm(folder, run)) == sorted_out(made(tmp_path, more))


@pytest.mark.parametrize(
    ("mine", "problem"),
    [
        ({"namespaces": "x"}, "namespaces"),
        ({"images": {"registri": "x"}}, "registri"),
        ({"presets": {}}, "presets"),
        ({"run": {"server": "9b"}}, "/run/server"),
        ({"run": {"vllm": "cpu"}}, "/run/vllm"),
        ({"storage": {"size": "lots"}}, "/storage/size"),
        ({"private_cidrs": []}, "/private_cidrs"),
        ({"store": "runs"}, "/store"),
        ({"store": "/data/a: {b: c}"}, "/store"),
        ({"images": {"redis": 'r"\nkind: Secret'}}, "/images/redis"),
        ({"drain_s": 0}, "/drain_s"),
        ({"drain_s": 3541}, "/drain_s"),
        ({"name": "n" * 28}, "/name"),
        ({"run": {"server": "405b"}}, "pod_security: is to be privileged"),
        ({"storage": {"access": "ReadWriteOnce"}}, "storage.access: ReadWriteOnce is one node"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(
    folder: Path, tmp_path: Path, mine: dict[str, Any], problem: str
) -> None:
    done = helm("template", "serve-app", folder, "--values", written(tmp_path, mine), check=False)
    assert done.returncode == 1
    assert problem in done.stderr


def test_a_release_whose_name_no_object_can_have_is_refused(folder: Path) -> None:
    for name in ("n" * 28, "7b"):
        done = helm("template", name, folder, check=False)
        assert "is to have at most 27 characters" in done.stderr


def test_a_value_of_which_the_chart_can_say_nothing_is_no_chart() -> None:
    with pytest.raises(BadSettings, match="a chart cannot say zz-pools: "):
        file("true", Part([], ["name: zz-pools", "namespace: zz-space"]))


def test_every_value_of_the_chart_has_its_default(folder: Path) -> None:
    document = yaml.safe_load((folder / "values.yaml").read_text())
    assert set(document) == set(FREE) - {"name", "namespace", "run"}
    assert all(set(document[name]) == set(fields) for name, fields in FREE.items() if fields)


def test_the_notes_name_the_secrets_of_the_release(folder: Path) -> None:
    said = helm("install", "llm", folder, "--namespace", "prod", "--dry-run=client").stdout.partition("NOTES:")[2]
    assert "create secret generic llm-keys" in said
    assert "kubectl label namespace prod pod-security.kubernetes.io/enforce=baseline" in said


def test_a_template_of_another_chart_is_not_left_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/old.yaml").write_text("kind: Secret\n")
    result = CliRunner().invoke(app, ["k8s", "chart", "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert "old.yaml: not of this chart" in str(result.exception or result.output)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["old.yaml"]


def test_the_command_writes_the_chart(tmp_path: Path, folder: Path) -> None:
    result = CliRunner().invoke(app, ["k8s", "chart", "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    for path in folder.rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(folder)).read_text() == path.read_text()
