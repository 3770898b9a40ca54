"""The real cluster is started once a session, from config.yaml with a port and a store of its own, and shared."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import uvicorn
import yaml
from hypothesis import settings

ROOT = Path(__file__).parents[1]
# How long an example takes says more of the machine than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    return unused_port()


@contextmanager
def served(app: Any, *, lifespan: Literal["auto", "off"] = "auto", port: int = 0) -> Iterator[str]:
    """The base URL of a real HTTP server of an ASGI application."""
    settings = uvicorn.Config(app, port=port, lifespan=lifespan, log_level="critical", access_log=False)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.force_exit = server.should_exit = True
        thread.join()


def own_document(folder: Path, config: Path = ROOT / "config.yaml") -> dict[str, Any]:
    """What is in the config file, but for a free port and a store in `folder`."""
    from serve_app.serving.launch.config import set_store

    document: dict[str, Any] = yaml.safe_load(config.read_text())
    document["http_options"]["port"] = unused_port()
    set_store(document, str(folder / "runs"))
    return document


@dataclass(frozen=True)
class Cluster:
    base_url: str
    config: dict[str, Any]
    log: Path
    runs: Path


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from serve_app.serving.launch.local import local_serve

    folder = tmp_path_factory.mktemp("cluster")
    document = own_document(folder)
    document["applications"][1]["args"]["chunk_rows"] = 16
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    log = folder / "serve.log"
    with local_serve(path, log=log, on_wait=print) as base_url:
        yield Cluster(base_url, document, log, folder / "runs")
