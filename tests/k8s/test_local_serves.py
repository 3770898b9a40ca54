"""The local overlay's `serveConfigV2` on real Serve and vLLM, without Kubernetes: one node with the CPUs of its pods.

What is a place of the cluster is changed, and nothing else: addresses, and the paths of the keys and of the store.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from serve_app.client.check import run_checks
from serve_app.serving.config import set_store
from serve_app.serving.key_file import create_key
from serve_app.serving.local import local_serve, serve_environment
from tests.conftest import unused_port
from tests.k8s.sets import overlay

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(1200)]
KEYS = "/etc/serve-app/keys/keys.yaml"


@contextmanager
def ray_head(cpus: int, folder: Path) -> Iterator[str]:
    """The address of a cluster of one node that says it has so many CPUs."""
    port, ray = unused_port(), str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1", f"--port={port}",
               "--dashboard-host=127.0.0.1", f"--dashboard-port={unused_port()}"]  # fmt: skip
    env = {**os.environ, **serve_environment()}
    with open(folder / "ray.log", "w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)


def test_the_overlays_serve_config_answers_serve_app_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (service,) = (one for one in overlay("local") if one["kind"] == "RayService")
    text = service["spec"]["serveConfigV2"]
    assert text.count(KEYS) == 4
    keys = tmp_path / "keys.yaml"
    monkeypatch.setenv("SERVE_APP_API_KEY", create_key(keys, "operator"))
    document = yaml.safe_load(text.replace(KEYS, str(keys)))
    document["http_options"] |= {"host": "127.0.0.1", "port": unused_port()}
    set_store(document, str(tmp_path / "runs"))
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(document))
    with (
        ray_head(8, tmp_path) as address,
        local_serve(config, log=tmp_path / "serve.log", on_wait=print, env={"RAY_ADDRESS": address}) as base_url,
    ):
        results = list(run_checks(base_url, replicas=2))
    print(results)
    assert [name for name, problem, _ in results if problem] == []
    assert len(results) == 8
