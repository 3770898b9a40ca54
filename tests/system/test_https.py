"""`http_options.ssl_*`: the server answers HTTPS alone, with our certificate, and a key is checked as ever."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.client.check import run_checks
from serve_app.client.populations import PopulationClient
from serve_app.errors import ServerUnavailable
from serve_app.serving.gate.key_file import create_key
from serve_app.serving.launch.local import local_serve
from serve_app.serving.launch.simulated import simulate
from tests.conftest import own_document
from tests.serving.certificates import self_signed

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def test_serve_answers_https_alone_with_a_certificate_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = own_document(tmp_path)
    simulate(document)
    certificate, key = self_signed(tmp_path)
    document["http_options"] |= {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    keys = tmp_path / "keys.yaml"
    monkeypatch.setenv("SERVE_APP_API_KEY", create_key(keys, "me"))
    for application in document["applications"]:
        args = application.setdefault("args", {})
        access = args if application["name"] == "batches" else args.setdefault("access", {})
        access["key_files"] = [str(keys)]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    with local_serve(config, log=tmp_path / "serve.log", on_wait=print) as base_url:
        assert base_url.startswith("https://127.0.0.1:")
        with pytest.raises(ServerUnavailable, match="by the variable SSL_CERT_FILE"):
            PopulationClient(base_url).replicas()
        with pytest.raises(httpx.HTTPError):
            httpx.get(base_url.replace("https", "http"), timeout=10)
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{base_url}/v1/models", verify=trusting, timeout=30).status_code == 401
        assert httpx.get(f"{base_url}/-/healthz", verify=trusting, timeout=30).text == "success"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        results = list(run_checks(base_url, replicas=2))
    assert [(name, problem) for name, problem, _ in results if problem] == []
    assert len(results) == 8
