"""The local overlay's `serveConfigV2` on real Serve and vLLM, without Kubernetes: one node with the CPUs of its pods.

What is a place of the cluster is changed, and nothing else: addresses, and the paths of the keys and of the store.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from serve_app.client.check import run_checks
from serve_app.serving.gate.key_file import create_key
from serve_app.serving.launch.config import set_store
from serve_app.serving.launch.local import local_serve
from tests.conftest import unused_port
from tests.k8s.sets import overlay

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(1200)]
KEYS = "/etc/serve-app/keys/keys.yaml"
# Two workers with two each; the head has none.
PODS_CPUS = 4


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
    env = {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": PODS_CPUS})}
    with local_serve(config, log=tmp_path / "serve.log", on_wait=print, env=env) as base_url:
        results = list(run_checks(base_url, replicas=2))
    print(results)
    assert [name for name, problem, _ in results if problem] == []
    assert len(results) == 8
