"""The lab on a fake cluster: it ends well where all is well, and at the right step where one thing is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.k8s.serve_config import serve_config
from serve_app.k8s.values import Values
from serve_app.models import default
from serve_app.serving.gate.keys import hash_key, read_keys
from serve_app.serving.launch.config import ServeConfig
from tests.k8s import sets
from tests.k8s.checks import ROOT

pytestmark = pytest.mark.skipif(sets.KUBECTL is None, reason=sets.WITHOUT_KUBECTL)
STEPS = [
    "cluster", "operator", "apply", "ready", "apply_again", "pod_security", "population", "upgrade", "upgrade_again",
    "eviction", "population_ends", "population_again", "deletion",
]  # fmt: skip
KIND = """#!/bin/sh
echo "kind $*" >>"$FAKE/calls"
[ "$1" = version ] && echo "kind v0.33.0 go1.26"
[ "$1" = get ] && [ -n "$THERE" ] && echo serve-app-lab
exit 0
"""


# Renders each values file once, for all tests.
SERVE_APP = f"""#!/bin/sh
[ "$2" = render ] || exec {sys.executable} -m serve_app.cli "$@"
made="$(dirname "$FAKE")/made-$(sha256sum <"$4" | cut -c-16)"
[ -d "$made" ] || {sys.executable} -m serve_app.cli k8s render --values "$4" --out "$made" || exit
mkdir -p "$6" && cp "$made"/* "$6"
"""


def lab(folder: Path, *arguments: str, **environment: str) -> tuple[dict[str, Any], list[str], str]:
    """(its last line, the calls of tools, what it said of errors)."""
    tools = folder / "tools"
    tools.mkdir()
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    scripts = {
        "kubectl": python.replace('"$@"', f'{Path(__file__).with_name("fake_kubectl.py")} "$@"'),
        "serve-app": SERVE_APP,
        "kind": KIND,
        **{name: f'#!/bin/sh\necho "{name} $*" >>"$FAKE/calls"\n' for name in ("docker", "helm")},
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    settings = {
        "PATH": f"{tools}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "FAKE": str(folder), "KUBECTL": str(sets.KUBECTL),
        "BUILD": str(folder / "build"), "PAUSE": "0", "PATIENCE": "0", **environment,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "cluster/lab.sh"), *arguments],
        env={**os.environ, **settings}, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode == 0) == (last["failed"] is None), done.stderr
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return last, calls, done.stderr


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str], str]:
    return lab(tmp_path_factory.mktemp("lab"))


def test_every_step_passes_where_all_is_well(good: tuple[dict[str, Any], list[str], str]) -> None:
    last, calls, said = good
    assert last["failed"] is None, said
    assert list(last["seconds"]) == STEPS
    assert calls[-1] == "kind delete cluster --name serve-app-lab"


def test_no_other_cluster_is_asked_or_changed(good: tuple[dict[str, Any], list[str], str]) -> None:
    _, calls, _ = good
    ours = ("kubectl --context kind-serve-app-lab ", "helm --kube-context kind-serve-app-lab ", "docker build ")
    kinds = ("kind get clusters", "kind version", *(f"kind {verb} " for verb in ("create", "load", "delete")))
    assert [call for call in calls if not call.startswith((*ours, *kinds))] == []
    assert all("--name serve-app-lab" in call for call in calls if call.startswith(kinds[2:]))


@pytest.mark.parametrize(
    ("fault", "step", "said"),
    [
        ("never-ready", "ready", ""),
        ("silent", "ready", "not within 300 s: the server answers"),
        ("conflict", "apply_again", 'conflict with "kuberay-operator"'),
        ("differs", "apply_again", "kubectl diff finds differences"),
        ("drift", "apply_again", "a second apply changed objects"),
        ("privileged", "pod_security", "the namespace takes a privileged pod"),
        ("quota", "pod_security", "but not by Pod Security"),
        ("pod-refused", "pod_security", "Pod Security refused a pod of ours"),
        ("stuck", "upgrade", "another cluster serves than lab-"),
        ("requests-fail", "upgrade", "3 requests failed during the upgrade"),
        ("too-short", "upgrade", "the population no longer runs"),
        ("old-cluster", "upgrade", "the old cluster lab-"),
        ("blocked", "eviction", "disruption budget"),
        ("rows-fail", "population_ends", "the population ended as FAILED"),
        ("runs-again", "population_again", "the finished population ran again"),
        ("finalizer", "deletion", "no RayCluster is left"),
        ("leftover", "deletion", "PriorityClasses are left"),
    ],
)
def test_what_goes_wrong_ends_the_lab_at_its_step(tmp_path: Path, fault: str, step: str, said: str) -> None:
    last, calls, errors = lab(tmp_path, FAULT=fault)
    assert last["failed"] == step, errors
    assert list(last["seconds"]) == STEPS[: STEPS.index(step)]
    assert said in errors
    assert calls[-1] == "kind delete cluster --name serve-app-lab"


def test_the_key_that_is_asked_with_is_one_of_the_servers(tmp_path: Path) -> None:
    lab(tmp_path)
    (known,) = read_keys(tmp_path / "build/keys.yaml")
    assert known.sha256 == hash_key((tmp_path / "build/key").read_text().removesuffix("\n"))


def test_a_cluster_that_is_there_is_left_alone(tmp_path: Path) -> None:
    last, calls, errors = lab(tmp_path, THERE="1")
    assert last["failed"] == "cluster"
    assert "kind delete cluster --name serve-app-lab" in errors
    assert calls == ["kind get clusters"]


def test_the_cluster_can_be_kept(tmp_path: Path) -> None:
    _, calls, _ = lab(tmp_path, "--keep", FAULT="blocked")
    assert not [call for call in calls if call.startswith("kind delete")]


def test_no_key_is_in_an_argument(good: tuple[dict[str, Any], list[str], str]) -> None:
    _, calls, _ = good
    assert not [call for call in calls if "sk-" in call]


def test_the_labs_engine_has_a_tokenizer_that_is_in_the_image(tmp_path: Path) -> None:
    for name in ("server", "population"):
        values = Values.load(ROOT / f"cluster/lab/{name}.yaml")
        (preset,) = values.run.values()
        document = serve_config(values, values.preset(preset))
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        (engine,) = ServeConfig.load(path).engines
        assert engine.settings.simulated is not None
        assert engine.settings.engine["model"] == default.NAME
