"""A real Ray Serve cluster with simulated replicas that scales to zero, for tests of jobs."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serve_app.serving.launch.local import marked_processes

CONFIG: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "http_options": {"host": "127.0.0.1"},
    "applications": [
        {
            "name": "replicas",
            "route_prefix": "/",
            "import_path": "serve_app.serving.apps:replicas",
            "args": {
                "engine": {"served_model_name": "sim", "tensor_parallel_size": 2},
                "simulated": {"step_ms": 5, "prefill_ms_per_token": 0.05},
            },
            "deployments": [
                {
                    "name": "Replica",
                    "ray_actor_options": {"num_cpus": 0},
                    "autoscaling_config": {
                        "min_replicas": 0,
                        "max_replicas": 2,
                        "target_ongoing_requests": 64,
                        "upscale_delay_s": 1,
                        "downscale_delay_s": 4,
                        "policy": {"policy_function": "serve_app.serving.autoscaling:BacklogPolicy"},
                    },
                }
            ],
        },
        {
            "name": "populations",
            "route_prefix": "/v1/populations",
            "import_path": "serve_app.serving.apps:populations",
            "args": {"max_runners": 2, "rows_per_runner": 4000},
            "deployments": [{"name": "Driver"}],
        },
    ],
}


@dataclass(frozen=True)
class Simulated:
    base_url: str
    folder: Path
    marker: str

    def cli(self, *arguments: str, group: str = "population") -> str:
        """What the command prints; raises if it fails."""
        command = [str(Path(sys.executable).with_name("serve-app")), group, *arguments, "--base-url", self.base_url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.folder)
        if done.returncode:
            raise AssertionError(done.stderr)
        return done.stdout

    def processes(self, title: str) -> list[int]:
        """Ray processes of this cluster with that in their titles."""
        return [process.pid for process in marked_processes(self.marker) if title in " ".join(process.cmdline())]


def people(path: Path, count: int) -> str:
    path.write_text("custom_id,name\n" + "".join(f"p{i},Person {i}\n" for i in range(count)))
    return str(path)


def replicas(cluster: Simulated) -> int:
    answer = httpx.get(f"{cluster.base_url}/v1/populations/replicas", timeout=30)
    assert answer.status_code == 200
    return len(answer.json()["data"])


def wait_until(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
