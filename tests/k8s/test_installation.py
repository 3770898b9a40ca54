"""One values file makes any installation: free names, images of any registry, and nothing that two of them share."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.errors import BadSettings
from serve_app.k8s.rules.manifests import templates
from serve_app.k8s.values import DEFAULTS, Values, json_schema
from tests.k8s import checks, sets
from tests.k8s.sets import EVERY_WAY, NEIGHBOURS, identity, made, written

REGISTRY = "123456789012.dkr.ecr.us-west-2.amazonaws.com/llm"
MIRRORS = {
    "registry": REGISTRY,
    "redis": f"{REGISTRY}/redis@sha256:{'a' * 64}",
    "busybox": f"{REGISTRY}/busybox@sha256:{'b' * 64}",
    "pull_secrets": ["ecr", "mirror"],
}
KINDS = ({"run": EVERY_WAY}, {"run": {"server": "405b"}, "pod_security": "privileged"}, {"run": {"server": "cpu"}})


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checks.ROOT)


@pytest.mark.parametrize("mine", KINDS, ids=["every-way", "multi-node", "cpu"])
def test_every_image_comes_from_the_registry_with_the_pull_secrets(tmp_path: Path, mine: dict[str, Any]) -> None:
    pods = list(templates(made(tmp_path, {**mine, "images": MIRRORS})))
    images = {container["image"] for pod in pods for container in pod.containers}
    assert images
    assert {image for image in images if not image.startswith(f"{REGISTRY}/")} == set()
    assert all(pod.spec["imagePullSecrets"] == [{"name": "ecr"}, {"name": "mirror"}] for pod in pods)


def test_a_reference_with_a_tag_or_a_digest_is_taken_as_it_is(tmp_path: Path) -> None:
    for reference in ("mine:5.0.1", f"mine@sha256:{'c' * 64}"):
        everything = made(tmp_path, {"run": {"server": "cpu"}, "images": {"cpu": reference}})
        images = {pod.main["image"] for pod in templates(everything) if pod.owner["kind"] == "RayService"}
        assert images == {reference}


@pytest.mark.parametrize("mine", NEIGHBOURS, ids=lambda mine: f"{mine['namespace']}-{mine['name']}")
def test_no_name_of_the_defaults_is_left(tmp_path: Path, mine: dict[str, Any]) -> None:
    for manifest in made(tmp_path, mine):
        own = mine["namespace"] if manifest["kind"] == "Namespace" else mine["name"]
        kind, namespace, name = identity(manifest)
        assert name.removeprefix(f"{mine['namespace']}.").startswith(own)
        assert namespace == ("" if kind in ("Namespace", "PriorityClass") else mine["namespace"])


@pytest.mark.parametrize("ingress", ["alb", "gateway"])
def test_no_text_has_a_name_or_namespace_of_the_defaults(tmp_path: Path, ingress: str) -> None:
    mine = {
        "name": "prod", "namespace": "llm", "operator_namespace": "ops", "monitoring_namespace": "watch",
        "images": {"cpu": "mine", "cuda": "mine"}, "storage": {"storage_class": "fast"}, "run": EVERY_WAY,
        "ingress": {"kind": ingress, "host": "llm.example.com", "issuer": "ours"}, "monitoring": True,
    }  # fmt: skip
    everything = made(tmp_path, mine)
    assert "PrometheusRule" in {m["kind"] for m in everything}
    # Keys of labels and annotations, paths in the image, commands.
    ours = r"serve-app/[-a-z]+|/[-\w./]*serve-app[-\w./]*|serve-app population|serve-app\W+kernels|part-of\W+serve-app"
    text = re.sub(ours, "", json.dumps(everything))
    assert re.findall(r"[^ ]*(?:serve-app|kuberay-operator|monitoring(?!\.coreos))[^ ]*", text) == []


@pytest.mark.parametrize(("one", "other"), list(combinations(NEIGHBOURS, 2)))
def test_two_installations_share_no_object(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> None:
    assert {identity(m) for m in made(tmp_path, one)} & {identity(m) for m in made(tmp_path, other)} == set()


def test_neighbours_in_a_namespace_select_their_own_pods_alone(tmp_path: Path) -> None:
    first, second, *_ = NEIGHBOURS
    theirs = [pod.labels for pod in templates(made(tmp_path, second))]
    for manifest in made(tmp_path, first):
        spec = manifest.get("spec") or {}
        selector = spec.get("podSelector") or spec.get("selector")
        if manifest["metadata"]["name"] not in ("prod-closed", "prod-names") and selector:
            from serve_app.k8s.rules.manifests import selects

            assert not [labels for labels in theirs if selects(selector, labels)], identity(manifest)


@pytest.mark.skipif(sets.KUBECTL is None, reason=sets.WITHOUT_KUBECTL)
@pytest.mark.parametrize("mine", [*KINDS, NEIGHBOURS[1], {"ingress": {"kind": "gateway"}}])
def test_the_folder_can_be_applied_as_it_stands(tmp_path: Path, mine: dict[str, Any]) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["k8s", "render", "--values", str(written(tmp_path, mine)), "--out", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    found = checks.load(sets.kustomize(out))
    assert [str(refusal) for refusal in checks.refusals(found)] == []
    assert len(found) == len(made(tmp_path, mine))


def test_what_the_docs_show_of_gitops_tools_is_what_these_take(tmp_path: Path) -> None:
    page = (checks.ROOT / "docs/how-to/kubernetes.md").read_text()
    blocks = {name: text for name, text in re.findall(r"<!-- file: (\S+) -->\n```yaml\n(.*?)```", page, re.DOTALL)}
    mine = yaml.safe_load(blocks.pop("mine.yaml"))
    argo_cd, flux = (yaml.safe_load(blocks[name]) for name in ("argocd.yaml", "flux.yaml"))
    for document in (argo_cd, flux):
        assert checks.has_schema(document)
        assert [str(refusal) for refusal in checks.custom([document])] == []
    assert argo_cd["spec"]["destination"]["namespace"] == mine["namespace"]
    assert argo_cd["spec"]["syncPolicy"]["syncOptions"] == ["ServerSideApply=true"], "KubeRay's objects have owners"
    assert argo_cd["spec"]["source"]["path"] == flux["spec"]["path"].removeprefix("./") == "deploy/llm"
    assert "--out deploy/llm" in page
    (claim,) = [m for m in made(tmp_path, mine) if m["kind"] == "PersistentVolumeClaim"]
    annotations = claim["metadata"]["annotations"]
    assert annotations["kustomize.toolkit.fluxcd.io/prune"] == "disabled"
    assert {"Prune=false", "Delete=false"} <= set(annotations["argocd.argoproj.io/sync-options"].split(","))


def test_rendering_again_changes_nothing(tmp_path: Path) -> None:
    path, out = written(tmp_path, {"run": EVERY_WAY}), tmp_path / "out"
    for word in ("written", "as it was"):
        result = CliRunner().invoke(app, ["k8s", "render", "--values", str(path), "--out", str(out)])
        assert result.output.count(f": {word}") == len(list(out.iterdir())), result.output


def test_a_managed_redis_takes_the_place_of_ours(tmp_path: Path) -> None:
    everything = made(tmp_path, {"redis": {"address": "rediss://r.example.com:6380"}, "run": {"server": "8b-tp2"}})
    assert [m for m in everything if m["kind"] == "StatefulSet"] == []
    (service,) = [m for m in everything if m["kind"] == "RayService"]
    options = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "rediss://r.example.com:6380"
    policies = {m["metadata"]["name"]: m["spec"] for m in everything if m["kind"] == "NetworkPolicy"}
    for name in ("serve-app-head-to-redis", "serve-app-redis-cleanup"):
        (way,) = policies[name]["egress"]
        assert way["ports"] == [{"port": 6380}]
        assert {"ipBlock": {"cidr": "10.0.0.0/8"}} in way["to"]


@pytest.mark.parametrize("mine", [KINDS[1], {"run": {"population": "8b-tp2"}}], ids=["multi-node", "population"])
def test_what_has_no_head_to_remember_has_no_redis(tmp_path: Path, mine: dict[str, Any]) -> None:
    assert [m for m in made(tmp_path, mine) if m["kind"] in ("StatefulSet", "Ingress")] == []


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# nothing\n")
    assert Values.load(path) == Values.load(DEFAULTS) == Values.load(checks.ROOT / "k8s/values.yaml")


def test_a_preset_of_mine_has_its_config_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (checks.ROOT / "config.yaml").read_text().replace("smollm2-135m-instruct", "other")
    (tmp_path / "serve.yaml").write_text(text.replace("chunk_rows: 128", "chunk_rows: 7"))
    mine = {"config": "serve.yaml", "model": "m", "tensor_parallel": 1, "replicas": {"min": 1, "max": 1}}
    monkeypatch.chdir(tmp_path)
    everything = made(tmp_path, {"presets": {"mine": mine}, "run": {"server": "mine"}})
    (service,) = [m for m in everything if m["kind"] == "RayService"]
    assert "model: m\n" in service["spec"]["serveConfigV2"]


@pytest.mark.parametrize(
    ("mine", "problem"),
    [
        ({"namespaces": "x"}, "namespaces: Extra inputs are not permitted; did you mean 'namespace'"),
        ({"images": {"registri": "x"}}, r"images\.registri: Extra inputs are not permitted; did you mean 'registry'"),
        ({"name": "Prod"}, "name: String should match pattern"),
        ({"name": "n" * 28}, "name: String should have at most 27"),
        ({"run": {"server": "9b"}}, r"run\.server: preset '9b' is unknown: use one of cpu, 8b-l4"),
        ({"run": {"helm": "cpu"}}, r"run\.helm"),
        ({"run": {"vllm": "cpu"}}, "--way vllm needs a preset with GPUs"),
        ({"storage": {"size": "lots"}}, r"storage\.size: String should match pattern"),
        ({"redis": {"address": "r.example.com"}}, r"redis\.address: String should match pattern"),
        ({"private_cidrs": ["10.0.0.0/33"]}, r"private_cidrs\.0"),
        ({"ingress": {"kind": "nginx"}}, r"ingress\.kind: Input should be 'alb', 'gateway' or 'none'"),
        ({"images": {"redis": "redis:latest"}}, "image 'redis:latest' has no fixed tag"),
    ],
)
def test_what_is_wrong_is_said_by_its_field(tmp_path: Path, mine: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        made(tmp_path, mine)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"[" * 5000, "nested deeper"), (b"a: [", "is not YAML"), (b"\xff", "is not YAML"), (b"- a", "has no fields")],
)
def test_a_file_that_is_no_values_file_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(BadSettings, match=problem):
        Values.load(tmp_path / "mine.yaml")


def test_the_schema_takes_the_defaults_and_every_overlays_values() -> None:
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(json_schema()))
    for path in (DEFAULTS, *(checks.ROOT / "k8s/overlays").glob("*/values.yaml")):
        assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == []
    assert not validator.is_valid({"namespaces": "x"})
    assert not validator.is_valid({"name": "Prod"})
    assert validator.is_valid({"images": {"registry": "r.example.com"}})
