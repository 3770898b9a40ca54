"""What an installation meets after its first day: new images, drained nodes, populations beside a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.errors import BadSettings
from serve_app.k8s.rules.manifests import Manifest, Template, selects, serve_configs, templates, variables
from tests.k8s.checks import ROOT
from tests.k8s.sets import EVERY_WAY, made


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] == kind]


def population_pods(manifests: Sequence[Manifest]) -> dict[str, Template]:
    (job,) = of_kind(manifests, "RayJob")
    return {template.labels["serve-app/part"]: template for template in templates([job])}


@pytest.mark.parametrize(
    "change",
    [
        {"images": {"cuda": "serve-app:9.9.9"}},
        {"images": {"registry": "registry.example.com"}},
        {"images": {"pull_secrets": ["mirror"]}},
        {"storage": {"claim": "shared"}},
    ],
)
def test_a_job_that_changes_has_another_name(tmp_path: Path, change: dict[str, Any]) -> None:
    """A Job's template is immutable: under the same name the apply fails."""
    run = {"run": {"server": "8b-tp2", "vllm-job": "8b-l4"}}
    jobs = {m["metadata"]["name"]: m["spec"]["template"] for m in of_kind(made(tmp_path, run), "Job")}
    later = {m["metadata"]["name"]: m["spec"]["template"] for m in of_kind(made(tmp_path, run | change), "Job")}
    assert {name for name in jobs.keys() & later.keys() if jobs[name] != later[name]} == set()
    assert jobs != later


def test_a_job_that_stays_the_same_keeps_its_name(tmp_path: Path) -> None:
    one, other = (of_kind(made(tmp_path, {"run": {"server": "8b-tp2"}, "drain_s": s}), "Job") for s in (600, 900))
    assert one == other


def test_a_jobs_name_has_room_for_its_pods(tmp_path: Path) -> None:
    names = [m["metadata"]["name"] for m in of_kind(made(tmp_path, {"name": "n" * 27, "run": EVERY_WAY}), "Job")]
    assert names
    assert max(map(len, names)) <= 63


def test_a_budget_counts_online_replicas_alone(tmp_path: Path) -> None:
    everything = made(tmp_path, {"run": {"server": "8b-tp2", "population": "8b-tp2"}})
    (budget,) = of_kind(everything, "PodDisruptionBudget")
    counted = [t for t in templates(everything) if selects(budget["spec"]["selector"], t.labels)]
    assert [(t.owner["kind"], t.labels["serve-app/part"]) for t in counted] == [("RayService", "replica")]


def test_no_server_takes_the_node_of_a_populations_driver(tmp_path: Path) -> None:
    everything = made(tmp_path, {"run": {"server": "8b-tp2", "population": "8b-tp2"}})
    height = {m["metadata"]["name"]: m["value"] for m in of_kind(everything, "PriorityClass")}
    pods = population_pods(everything)
    server = max(height[t.spec["priorityClassName"]] for t in templates(of_kind(everything, "RayService")))
    for part in ("population-head", "population-control", "population-submitter"):
        assert height[pods[part].spec["priorityClassName"]] >= server
    assert height[pods["population-replica"].spec["priorityClassName"]] < server


def test_there_are_nodes_to_buy_for_pods_without_gpus() -> None:
    pools = list(yaml.safe_load_all((ROOT / "cluster/eks/node-pools.yaml").read_text()))
    (cpu,) = [p for p in pools if "taints" not in p["spec"]["template"]["spec"]]
    assert cpu["spec"]["limits"] == {"cpu": "128"}


def test_another_population_is_another_job(tmp_path: Path) -> None:
    """Under the same id the driver would answer with what the first one has."""
    found = []
    for size in (100, 200):
        asked = {"generator": {"name": "ctr", "arguments": {"size": size}}, "labels": ["Yes", "No"]}
        everything = made(tmp_path, {"run": {"population": "8b-tp2"}, "population": asked})
        (job,) = of_kind(everything, "RayJob")
        ((config, document),) = serve_configs(everything)
        store = document["applications"][1]["args"]["store"]
        job_id = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["JOB_ID"]
        assert job["metadata"]["name"] == config["metadata"]["name"] == f"serve-app-{job_id}"
        found.append((job_id, store))
    (first, its_store), (second, other_store) = found
    assert first != second
    assert its_store != other_store, "two drivers on one store would take each other's jobs"


def test_a_population_that_has_an_id_keeps_it(tmp_path: Path) -> None:
    asked = {"job_id": "weekly-7", "generator": {"name": "ctr", "arguments": {"size": 1}}, "labels": ["Yes", "No"]}
    (job,) = of_kind(made(tmp_path, {"run": {"population": "8b-tp2"}, "population": asked}), "RayJob")
    assert job["metadata"]["name"] == "serve-app-weekly-7"


@pytest.mark.parametrize("mine", [
    {"run": {"population": "8b-tp2"}, "deadline_s": 77},
    {"run": {"server": "405b"}, "pod_security": "privileged", "deadline_s": 77},
])  # fmt: skip
def test_a_rayjob_has_a_deadline(tmp_path: Path, mine: dict[str, Any]) -> None:
    (job,) = of_kind(made(tmp_path, mine), "RayJob")
    assert job["spec"]["activeDeadlineSeconds"] == 77


def test_a_population_serves_nobody_else_and_has_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    everything = made(tmp_path, {"run": {"population": "8b-tp2"}})
    ((_, document),) = serve_configs(everything)
    assert document["http_options"]["host"] == "127.0.0.1"
    pods = population_pods(everything)
    for template in pods.values():
        assert not [v for v in template.spec["volumes"] if "secret" in v]
        assert "REDIS_PASSWORD" not in variables(template.main)
    paths = {
        part: {m["mountPath"] for m in t.main["volumeMounts"]} - {"/tmp", "/home/serve"} for part, t in pods.items()
    }
    assert paths == {
        "population-head": {"/etc/serve-app/population"},
        "population-replica": {"/data/models"},
        "population-control": {"/data/models", "/data/populations"},
        "population-submitter": set(),
    }


def test_an_engine_over_nodes_needs_a_namespace_that_lets_it_lock_memory(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="pod_security: is to be privileged, since run.server '405b' locks memory"):
        made(tmp_path, {"run": {"server": "405b"}})
    (space,) = of_kind(made(tmp_path, {"run": {"server": "405b"}, "pod_security": "privileged"}), "Namespace")
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_a_claim_of_one_node_keeps_its_pods_together(tmp_path: Path) -> None:
    storage = {"access": "ReadWriteOnce", "storage_class": None, "size": "10Gi", "prepare": False}
    everything = made(tmp_path, {"run": {"server": "cpu"}, "storage": storage})
    head, worker = templates(of_kind(everything, "RayService"))
    (term,) = worker.spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert selects(term["labelSelector"], head.labels)
    with pytest.raises(BadSettings, match=r"storage\.access: ReadWriteOnce is one node"):
        made(tmp_path, {"run": {"server": "8b-tp2"}, "storage": storage})


def test_the_ground_has_the_claim_that_every_preset_mounts() -> None:
    base = list(yaml.safe_load_all((ROOT / "k8s/base/base.yaml").read_text()))
    assert [m["metadata"]["name"] for m in base if m["kind"] == "PersistentVolumeClaim"] == ["serve-app-data"]
