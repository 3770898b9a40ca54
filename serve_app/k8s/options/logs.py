"""A container beside Ray that prints the session's log files as JSON lines, for the cluster's own log agent.

Ray writes them to /tmp/ray/session_latest/logs, which goes with the pod. Ray's guide has a sidecar too; this one has no
address and no key of a log service, which are the agent's.
"""

from __future__ import annotations

from serve_app.k8s.pods import Manifest
from serve_app.k8s.values import Values

FOLDER = "/tmp/ray/session_latest/logs"
NAME = "logs"
RESOURCES = {"cpu": "100m", "memory": "128Mi"}
_TAIL = {
    "path": f"{FOLDER}/*.log,{FOLDER}/*.out,{FOLDER}/*.err,{FOLDER}/serve/*.log",
    "path_key": "file",
    "read_from_head": "true",
    "refresh_interval": "5",
    "skip_long_lines": "on",
    "mem_buf_limit": "16M",
}


def log_printer(values: Values) -> Manifest:
    """An init container that goes on: it starts before Ray and ends after it."""
    inputs = [part for name, value in _TAIL.items() for part in ("-p", f"{name}={value}")]
    return {
        "name": NAME,
        "image": values.images.fluent_bit,
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "args": ["-q", "-i", "tail", *inputs, "-o", "stdout", "-m", "*", "-p", "format=json_lines"],
        "resources": {"requests": dict(RESOURCES), "limits": dict(RESOURCES)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp", "readOnly": True}],
    }
