"""The server that a long run is put on: any config file, with keys, store, port and temporary files of its own."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.common import console
from serve_app.serving.gate.key_file import create_key
from serve_app.serving.launch.local import LocalServer, local_server
from serve_app.serving.launch.simulated import simulate
from serve_app.settings import API_KEY_ENV


@dataclass(frozen=True)
class Site:
    """A running server and its keys by name. `temporary` is where its processes make temporary files, `ray_token`
    what its Ray asks for: made for this server, so that nobody's own is used.
    """

    server: LocalServer
    base_url: str
    model: str
    keys: Mapping[str, str]
    temporary: Path
    ray_token: str

    def headers(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[key]}"}


@contextmanager
def running(
    config: Path,
    folder: Path,
    keys: Mapping[str, Mapping[str, Any]],
    *,
    simulated: Mapping[str, Any] | None = None,
) -> Iterator[Site]:
    """The config file's server with these keys (name to fields of `Key`); with `simulated`, settings of simulated
    engines, those answer. Our own clients use the first key.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    made = {name: create_key(folder / "keys.yaml", name, **fields) for name, fields in keys.items()}
    document = yaml.safe_load(config.read_text())
    document["http_options"]["port"] = _unused_port()
    for application in document["applications"]:
        _adapt(application, folder)
    if simulated is not None:
        document["applications"][0]["args"]["simulated"] = dict(simulated)
        simulate(document)
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    os.environ[API_KEY_ENV] = next(iter(made.values()))
    token = secrets.token_hex(32)
    log, env = folder / "serve.log", {"TMPDIR": str(temporary), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with local_server(folder / "config.yaml", log=log, on_wait=console.print, env=env) as server:
        base_url = server.settings.base_url
        bearer = {"authorization": f"Bearer {os.environ[API_KEY_ENV]}"}
        model = httpx.get(f"{base_url}/v1/models", headers=bearer).json()["data"][0]["id"]
        yield Site(server, base_url, model, made, temporary, token)


def _adapt(application: dict[str, Any], folder: Path) -> None:
    """Its keys; its store, if it has one."""
    args = application.setdefault("args", {})
    access = args if application["import_path"].endswith(":batches") else args.setdefault("access", {})
    access["key_files"] = [str(folder / "keys.yaml")]
    if "store" in args:
        args["store"] = str(folder / "runs")


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
