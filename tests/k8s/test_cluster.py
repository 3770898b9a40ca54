"""Scripts and the image: linted, and dry runs that touch nothing and say what they would do, in the right order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.k8s import lint
from tests.k8s.checks import ROOT

TOOLS = [pytest.param(name, id=name) for name in lint.commands()]


@pytest.mark.parametrize("name", TOOLS)
def test_a_linter_finds_nothing(name: str) -> None:
    if (tool := lint.tool(name)) is None:
        pytest.skip(f"{name} is not here")
    done = subprocess.run([tool, *lint.commands()[name]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dry_run(script: str, *arguments: str, tmp_path: Path) -> str:
    """What a script says with --dry-run; with tools that fail if they are called."""
    calls = tmp_path / "tools"
    calls.mkdir()
    for name in ("aws", "eksctl", "helm", "kubectl", "docker", "kind"):
        (calls / name).write_text(f'#!/bin/sh\necho "{name} was called: $*" >&2\nexit 99\n')
        (calls / name).chmod(0o755)
    path = f"{calls}:{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {**os.environ, "PATH": path, "BUILD": str(tmp_path / "build"), "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "cluster" / script), *arguments, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "was called" not in done.stderr
    return done.stdout


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_down_ends_ray_before_redis_operator_and_namespace(tmp_path: Path) -> None:
    said = dry_run("down.sh", tmp_path=tmp_path)
    assert in_order(
        said, "delete rayservices", "no rayclusters", "delete statefulsets", "uninstall kuberay", "delete namespace"
    )


def test_down_ends_what_owns_billed_things_before_what_removes_them(tmp_path: Path) -> None:
    said = dry_run("down.sh", tmp_path=tmp_path)
    assert in_order(said, "delete ingresses", "uninstall aws-load-balancer", "eksctl delete cluster")
    assert in_order(said, "delete persistentvolumeclaims", "no persistentvolumes", "eksctl delete cluster")
    assert in_order(said, "delete nodepools", "no nodeclaims", "eksctl delete cluster", "describe-instances")


def test_down_backs_file_systems_up_before_they_go_and_touches_no_bucket(tmp_path: Path) -> None:
    said = dry_run("down.sh", tmp_path=tmp_path)
    assert "its file systems are backed up first; buckets stay" in said
    assert in_order(
        said,
        "patch persistentvolume",
        "delete persistentvolumeclaims",
        "fsx delete-file-system",
        "eksctl delete cluster",
    ), "a class of before would end them with their claims"
    assert "SkipFinalBackup=false" in said
    assert not re.search(r"\bs3(api)? (rb|rm|delete)", said)


def test_down_deletes_data_only_when_told(tmp_path: Path) -> None:
    said = dry_run("down.sh", "--delete-data", tmp_path=tmp_path)
    assert "WITHOUT A BACKUP" in said
    assert "SkipFinalBackup=true" in said


def fake_aws(tmp_path: Path, cases: str) -> dict[str, str]:
    """An environment whose `aws` and `kubectl` write their calls down and answer by the cases of a shell."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name in ("aws", "kubectl"):
        (folder / name).write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/calls\ncase "$*" in\n{cases}\nesac\n')
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}


def of_script(script: str, function: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One function of a script, which is read without its last line, `main`."""
    text = (ROOT / "cluster" / script).read_text().replace('$(dirname "$0")', str(ROOT / "cluster"))
    lines = [line for line in text.splitlines() if line != "main" and not line.startswith("need ")]
    program = "\n".join([*lines, function])
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=environment, check=False)


BUCKETS = {
    "none": ("*head-bucket*) exit 1 ;;\n*get-caller*) echo 1 ;;", True, True),
    "ours": ("*get-bucket-tagging*) echo true ;;\n*get-caller*) echo 1 ;;", False, True),
    "another's": ("*get-bucket-tagging*) exit 1 ;;\n*get-caller*) echo 1 ;;", False, False),
}


@pytest.mark.parametrize(("cases", "created", "changed"), BUCKETS.values(), ids=list(BUCKETS))
def test_the_bucket_is_made_once_closed_again_each_time_and_another_ones_left(
    tmp_path: Path, cases: str, created: bool, changed: bool
) -> None:
    done = of_script("up.sh", "make_bucket", fake_aws(tmp_path, cases))
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert ("create-bucket --bucket" in calls) is created
    for call in ("public-access-block", "encryption", "versioning", "lifecycle-configuration", "policy"):
        assert (f"put-{call if call.startswith('public') else f'bucket-{call}'} " in calls) is changed
    assert ("left as it is" in done.stdout) is not changed


def test_a_file_system_that_cannot_be_looked_for_does_not_count_as_gone(tmp_path: Path) -> None:
    done = of_script("down.sh", 'until_none "file systems" file_systems', fake_aws(tmp_path, "*fsx*) exit 254 ;;"))
    assert done.returncode != 0
    assert "cannot tell whether any file systems is left" in done.stderr


VOLUMES = """*persistentvolumes*) cat <<END
pvc-weights serve-app Delete fsx.csi.aws.com
pvc-metrics monitoring Delete ebs.csi.aws.com
pvc-other team Delete fsx.csi.aws.com
pvc-old serve-app Retain fsx.csi.aws.com
END
;;"""


def test_a_lustre_volume_of_ours_is_kept_when_its_claim_goes_and_no_other_is_touched(tmp_path: Path) -> None:
    done = of_script("down.sh", "keep_volumes", fake_aws(tmp_path, VOLUMES))
    assert done.returncode == 0, done.stderr
    patched = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("patch")]
    assert [line.split()[2] for line in patched] == ["pvc-weights"]


@pytest.mark.parametrize("function", ["keep_volumes", "end_file_systems", "end_volumes"])
def test_nothing_goes_on_when_the_look_up_fails(function: str, tmp_path: Path) -> None:
    done = of_script("down.sh", function, fake_aws(tmp_path, "*) exit 1 ;;"))
    assert done.returncode != 0
    assert not re.search(r"^(fsx )?delete", (tmp_path / "calls").read_text(), re.MULTILINE)


def test_a_file_system_gets_its_last_backup_and_one_that_goes_already_is_waited_for(tmp_path: Path) -> None:
    cases = "*DELETING*) echo fs-1 ;;"
    done = of_script("down.sh", "end_file_systems", fake_aws(tmp_path, cases))
    assert done.returncode == 0, done.stderr
    (deleted,) = [line for line in (tmp_path / "calls").read_text().splitlines() if "delete-file-system" in line]
    assert "--file-system-id fs-1" in deleted
    assert "SkipFinalBackup=false,FinalBackupTags=[{Key=serve-app,Value=true}" in deleted


def test_the_buckets_rules_are_json_and_refuse_what_is_not_tls() -> None:
    lifecycle, policy = (
        json.loads((ROOT / "cluster/eks/bucket" / name).read_text()) for name in ("lifecycle.json", "policy.json")
    )
    assert {rule["Status"] for rule in lifecycle["Rules"]} == {"Enabled"}
    assert not any("Days" in rule.get("Expiration", {}) for rule in lifecycle["Rules"]), "results would go"
    (statement,) = policy["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_down_can_keep_the_cluster(tmp_path: Path) -> None:
    assert "eksctl delete" not in dry_run("down.sh", "--keep-cluster", tmp_path=tmp_path)


def test_up_makes_things_in_the_order_in_which_they_need_each_other(tmp_path: Path) -> None:
    said = dry_run("up.sh", tmp_path=tmp_path)
    assert in_order(
        said, "eksctl create", "node-pools.yaml", "<storage>", "kuberay/kuberay-operator", "wait rayservice"
    )
    assert in_order(said, "build/base.yaml", "secret generic serve-app-keys", "docker build", "wait rayservice")


def test_up_leaves_karpenters_tools_out_under_auto_mode(tmp_path: Path) -> None:
    said = dry_run("up.sh", "--auto-mode", tmp_path=tmp_path)
    assert "auto-mode/cluster.yaml" in said
    assert "gpu-operator" not in said
    assert "aws-load-balancer-controller" not in said


def test_up_takes_a_vpc_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPC_ID", "vpc-1")
    monkeypatch.setenv("SUBNETS", "subnet-1,subnet-2")
    said = dry_run("up.sh", "--existing-vpc", tmp_path=tmp_path)
    assert in_order(said, "create-tags --resources subnet-1 subnet-2", "<existing-vpc> | eksctl create cluster")


@pytest.mark.parametrize("subnets", ["", "subnet-1", "subnet-1,subnet-1"])
def test_up_needs_two_subnets_of_it(subnets: str, tmp_path: Path) -> None:
    environment = {**fake_aws(tmp_path, "*) echo 1 ;;"), "VPC_ID": "vpc-1", "SUBNETS": subnets}
    done = of_script("up.sh", "in_existing_vpc", environment)
    assert done.returncode == 1
    assert "needs VPC_ID and SUBNETS" in done.stderr


def test_a_cluster_in_an_existing_vpc_differs_in_nothing_else() -> None:
    own, existing = (
        yaml.safe_load((ROOT / "cluster/eks" / name).read_text()) for name in ("cluster.yaml", "existing-vpc.yaml")
    )
    assert own.pop("vpc") != existing.pop("vpc")
    assert own == existing


def test_all_nodes_are_of_one_release() -> None:
    text = "".join(path.read_text() for path in (ROOT / "cluster/eks").glob("*.yaml"))
    releases = re.findall(r"releaseVersion: [\d.]+-(\d+)", text) + re.findall(r"alias: al2023@v(\d+)", text)
    assert len(releases) >= 4
    assert len(set(releases)) == 1


def test_up_shows_no_secret(tmp_path: Path) -> None:
    assert not re.search(r"[0-9a-f]{32}", dry_run("up.sh", tmp_path=tmp_path))


@pytest.mark.parametrize("script", ["verify.sh", "cost.sh"])
def test_looking_changes_nothing(script: str, tmp_path: Path) -> None:
    said = dry_run(script, tmp_path=tmp_path)
    assert not re.search(r"\b(delete|apply|create|uninstall|upgrade)\b", said)


def test_the_image_has_what_kuberays_probes_call() -> None:
    text = (ROOT / "cluster/Dockerfile").read_text()
    assert re.search(r"apt-get install .*\bbash wget\b", text)


def test_the_image_runs_as_the_user_that_pods_name() -> None:
    from serve_app.k8s.pods import HOME, USER

    text = (ROOT / "cluster/Dockerfile").read_text()
    assert text.count(f"USER {USER}\n") == 2
    assert f"useradd --uid {USER}" in text
    assert f"WORKDIR {HOME}" in text


def test_versions_are_typed_once() -> None:
    """KubeRay's and Karpenter's, in eksctl's file and in the charts' list."""
    versions = dict(re.findall(r"^(\w+)_VERSION=(\S+)", (ROOT / "cluster/helm/versions.env").read_text(), re.MULTILINE))
    assert f"version: {versions['KARPENTER']}" in (ROOT / "cluster/eks/cluster.yaml").read_text()


def test_the_operator_watches_every_installations_namespace() -> None:
    assert "\nwatchNamespace:" not in (ROOT / "cluster/helm/kuberay.yaml").read_text()


def test_the_image_copies_what_its_context_has() -> None:
    text = (ROOT / "cluster/Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
