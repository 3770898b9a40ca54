"""A kubectl with a cluster in a file, as far as cluster/lab.sh asks; anything else is an error.

$FAKE is the folder of the state and of the calls, $FAULT one thing that goes wrong. What is applied with `-k` the real
kubectl puts together.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER, FAULT = Path(os.environ["FAKE"]), os.environ.get("FAULT", "")
STATE = FOLDER / "state.json"
State = dict[str, Any]


def main(arguments: list[str]) -> int:
    with (FOLDER / "calls").open("a") as calls:
        calls.write("kubectl " + " ".join(arguments) + "\n")
    new = {"objects": {}, "asked": 0, "failed": 0, "evicted": False}
    state = json.loads(STATE.read_text()) if STATE.exists() else new
    words = arguments[2:]  # after --context
    words = words[2:] if words[0] == "-n" else words
    status = ACTIONS[words[0]](state, words[1:], arguments)
    STATE.write_text(json.dumps(state))
    return status


def apply(state: State, words: list[str], arguments: list[str]) -> int:
    for document in _documents(arguments):
        key = _key(document)
        known = state["objects"].get(key)
        if known and FAULT == "conflict" and document["kind"] == "RayService":
            print('conflict with "kuberay-operator": .spec.rayClusterConfig.workerGroupSpecs', file=sys.stderr)
            return 1
        changed = known is None or known["document"] != document or (FAULT == "drift" and "RayService" in key)
        generation = (known["generation"] if known else 0) + changed
        if known and changed and document["kind"] == "RayService" and FAULT == "requests-fail":
            state["failed"] += 3
        if not (FAULT == "stuck" and known):
            state["objects"][key] = {"document": document, "generation": generation}
    return 0


def diff(state: State, words: list[str], arguments: list[str]) -> int:
    differs = any(state["objects"].get(_key(d), {}).get("document") != d for d in _documents(arguments))
    return int(differs or FAULT == "differs")


def create(state: State, words: list[str], arguments: list[str]) -> int:
    if "--raw" in words:
        eviction = json.load(sys.stdin)
        if FAULT == "blocked" or f"/pods/{eviction['metadata']['name']}/eviction" not in " ".join(words):
            print("Cannot evict pod as it would violate the pod's disruption budget.", file=sys.stderr)
            return 1
        state["evicted"] = True
    return 0


def get(state: State, words: list[str], arguments: list[str]) -> int:
    what, output = words[0], arguments[arguments.index("-o") + 1]
    if what.startswith("rayservices,") and "generation" in output:
        print("\n".join(f"{key} {one['generation']}" for key, one in sorted(state["objects"].items()) if "Ray" in key))
    elif what == "rayservice/lab":
        print(_cluster(state), end="")
    elif what == "rayjobs":
        print(_job(state, output.partition("status.")[2].rstrip("}")), end="")
    elif what == "pods":
        print(f"{_cluster(state)}-worker", end="")
    elif what == "events":
        print('pods "lab" is forbidden: violates PodSecurity "baseline:latest"' if FAULT == "pod-refused" else "")
    elif what in ("rayclusters", "priorityclasses", "persistentvolumes"):
        left = {"finalizer": "rayclusters", "leftover": "priorityclasses"}.get(FAULT)
        print(f"{what}/left" if what == left else "")
    elif what.startswith("pod/"):
        print("" if state["evicted"] else what)
    elif what.startswith("raycluster/"):
        print(what if FAULT == "old-cluster" else "")
    elif what.startswith("namespace/"):
        print("" if f"Namespace/{what.removeprefix('namespace/')}" not in state["objects"] else what)
    elif output != "wide":
        return _unknown(arguments)
    return 0


def logs(state: State, words: list[str], arguments: list[str]) -> int:
    state["asked"] += FAULT != "silent"
    print("answered\n" * state["asked"] + "failed 12:00:00\n" * state["failed"], end="")
    return 0


def run(state: State, words: list[str], arguments: list[str]) -> int:
    if FAULT == "privileged":
        return 0
    reason = 'violates PodSecurity "baseline:latest"' if FAULT != "quota" else "exceeded quota"
    print(f'pods "privileged" is forbidden: {reason}: privileged', file=sys.stderr)
    return 1


def delete(state: State, words: list[str], arguments: list[str]) -> int:
    if "-k" in words:
        for document in _documents(arguments):
            state["objects"].pop(_key(document), None)
    return 0


def wait(state: State, words: list[str], arguments: list[str]) -> int:
    return int(FAULT == "never-ready")


def _unknown(arguments: list[str]) -> int:
    print(f"the fake knows no {arguments}", file=sys.stderr)
    return 97


def _cluster(state: State) -> str:
    """Another one for each other pod template."""
    (service,) = [one["document"] for one in state["objects"].values() if one["document"]["kind"] == "RayService"]
    assert service["spec"]["upgradeStrategy"]["type"] == "NewCluster"
    import hashlib

    return "lab-" + hashlib.sha256(json.dumps(service["spec"]["rayClusterConfig"]).encode()).hexdigest()[:5]


def _job(state: State, field: str) -> str:
    if field == "startTime":
        state["asked"] += 1
        return f"2026-01-01T00:00:{state['asked'] if FAULT == 'runs-again' else 0:02}Z"
    if field == "jobDeploymentStatus":
        return "Complete" if state["evicted"] else "Running"
    if FAULT == "too-short" and _cluster(state) != state.setdefault("first_cluster", _cluster(state)):
        return "SUCCEEDED"
    return ("FAILED" if FAULT == "rows-fail" else "SUCCEEDED") if state["evicted"] else "RUNNING"


def _documents(arguments: list[str]) -> list[dict[str, Any]]:
    import subprocess

    import yaml

    flag = "-k" if "-k" in arguments else "-f"
    path = arguments[arguments.index(flag) + 1]
    if flag == "-k":
        command = [os.environ["KUBECTL"], "kustomize", path]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    else:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
    return [document for document in yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if document]


def _key(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


ACTIONS = {
    "apply": apply, "diff": diff, "create": create, "get": get,
    "logs": logs, "run": run, "delete": delete, "wait": wait,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
