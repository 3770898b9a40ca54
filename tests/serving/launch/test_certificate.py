"""A certificate that Serve could not use is refused before the start, and named by its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.errors import BadSettings
from serve_app.serving.haproxy.environment import INGRESS
from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.local import serve_environment
from tests.conftest import own_document
from tests.serving.certificates import self_signed


def config(folder: Path, **options: Any) -> ServeConfig:
    document = own_document(folder)
    document["http_options"] |= {name: str(value) for name, value in options.items()}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return ServeConfig.load(path)


def test_without_one_the_server_speaks_http(tmp_path: Path) -> None:
    assert config(tmp_path).base_url.startswith("http://")
    assert config(tmp_path).trusted is True


def test_with_one_it_speaks_https(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    found = config(tmp_path, ssl_certfile=certificate, ssl_keyfile=key)
    found.check()
    assert serve_environment(found, {})[INGRESS] == "0"
    assert found.base_url.startswith("https://")
    assert httpx.Client(verify=found.trusted)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ssl_keyfile": "{key}"}, "ssl_keyfile needs ssl_certfile beside it"),
        ({"ssl_certfile": "{certificate}"}, "ssl_certfile"),
        (
            {"ssl_certfile": "{certificate}", "ssl_keyfile": "{folder}/none.key"},
            r"ssl_keyfile: .*none\.key: No such file",
        ),
        ({"ssl_certfile": "{folder}", "ssl_keyfile": "{key}"}, "ssl_certfile: .*Is a directory"),
        (
            {"ssl_certfile": "{certificate}", "ssl_keyfile": "{other}"},
            "ssl_certfile: .* are no certificate with its key",
        ),
        ({"ssl_certfile": "{key}", "ssl_keyfile": "{key}"}, "ssl_certfile: .* are no certificate with its key"),
    ],
)
def test_what_is_no_certificate_with_its_key_is_said(tmp_path: Path, options: dict[str, str], problem: str) -> None:
    certificate, key = self_signed(tmp_path)
    _, other = self_signed(tmp_path, "other")
    places = {"certificate": certificate, "key": key, "other": other, "folder": tmp_path}
    with pytest.raises(BadSettings, match=rf"config\.yaml:\d+: http_options\.{problem}"):
        config(tmp_path, **{name: value.format(**places) for name, value in options.items()}).check()


def test_beside_rays_haproxy_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = self_signed(tmp_path)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(BadSettings, match="HAProxy has no TLS"):
        config(tmp_path, ssl_certfile=certificate, ssl_keyfile=key).check()
