"""What `serve run` gets in its environment."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.serving.haproxy.environment import HAPROXY, INGRESS, PROXY, variables
from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.local import private_folder, serve_environment
from serve_app.serving.launch.simulated import simulate
from serve_app.settings import ROUTING_ENV
from tests.conftest import ROOT


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    document: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    simulate(document)
    document["applications"][0]["args"]["routing"] = {"session_slack_requests": 3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    return ServeConfig.load(tmp_path / "config.yaml")


def test_haproxy_is_the_ingress_and_is_told_how_sessions_are_routed(config: ServeConfig) -> None:
    found = serve_environment(config, {})
    assert found.items() >= HAPROXY.items()
    assert json.loads(found[ROUTING_ENV])["replicas"]["session_slack_requests"] == 3


def test_serves_proxy_gets_nothing_that_is_for_haproxy(config: ServeConfig) -> None:
    found = serve_environment(config, {INGRESS: "0"})
    assert found.items() >= PROXY.items()
    assert not [name for name in found if name in HAPROXY.keys() - {INGRESS} or "HAPROXY" in name]


@pytest.mark.parametrize(
    ("options", "direct"),
    [
        ({}, "1"),
        ({"host": "0.0.0.0"}, "1"),
        ({"host": "127.0.0.1", "port": 8000}, "1"),
        ({"host": "10.0.0.7"}, "0"),
        ({"host": "::1"}, "0"),
        ({"ssl_keyfile": "key.pem", "ssl_certfile": "cert.pem"}, "0"),
        ({"root_path": "/llm"}, "0"),
    ],
)
def test_serves_proxy_stays_where_haproxy_cannot_do_what_is_asked(options: dict[str, Any], direct: str) -> None:
    assert variables({}, options)[INGRESS] == direct
    assert variables({INGRESS: "1"}, options)[INGRESS] == "1", "the user's word counts"


def test_the_page_on_plain_serve_run_lists_what_haproxy_needs() -> None:
    page = (ROOT / "docs" / "how-to" / "operate.md").read_text()
    assert not [name for name, value in HAPROXY.items() if f"\n{name}={value}\n" not in page]


def test_what_the_user_has_set_stays(config: ServeConfig) -> None:
    given = {"RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "7", "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "2"}
    assert serve_environment(config, given).items() >= given.items()


def test_two_servers_of_one_machine_share_no_port(config: ServeConfig) -> None:
    ports = {serve_environment(config, {})["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] for _ in range(3)}
    assert len(ports) == 3


def test_haproxys_files_are_in_a_folder_that_nobody_else_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = private_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_folder() == folder
    for taken in ("opened", "link", "file"):
        folder.chmod(0o700) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
        if folder.is_dir():
            folder.rmdir()
        if taken == "opened":
            folder.mkdir(mode=0o777)
            folder.chmod(0o777)
        elif taken == "link":
            folder.symlink_to(tmp_path, target_is_directory=True)
        else:
            folder.touch()
        other = private_folder()
        assert other != folder, taken
        assert other.stat().st_mode & 0o777 == 0o700
