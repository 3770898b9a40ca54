"""The sides: our server, by its defaults or by one of Serve's ingresses, and its peers.

Each is one replica of the same engine, frozen but while it is measured. Servers answer chats; offline vLLM, run-batch,
Ray Data and our driver take rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import yaml

from benchmarks.front.tiny import ENGINE
from benchmarks.peers import ROOT, Case
from benchmarks.peers.fleet import Frozen, Ours
from benchmarks.peers.offline_chat import OfflineChat
from benchmarks.peers.ray_data import RayData
from benchmarks.peers.ray_serve_llm import RayServeLlm
from benchmarks.peers.run_batch import RunBatch
from benchmarks.peers.vllm_serve import MODEL, VllmServe
from serve_app.serving.launch.config import set_store

OURS = "ours"
INGRESSES = {"proxy": {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"}}
CHAT_PEERS = ("vllm_serve", "ray_serve_llm", "ray_serve_llm_direct")
ROW_PEERS = ("offline", "run_batch", "ray_data")
FIRST_PORT = 8770


class Measured(Frozen, Protocol):
    """A side of a comparison."""

    @property
    def session(self) -> int:
        """The session of its processes. Raises ServeAppError before `start`."""


def ours_of(ingresses: list[str]) -> list[str]:
    """Names of our sides: by the defaults, and by these ingresses."""
    return [OURS, *(f"{OURS}_{name}" for name in ingresses)]


def side_makers(
    folder: Path, model: Path, labels: tuple[str, ...], label_ids: tuple[int, ...], *, rows: int, ingresses: list[str]
) -> dict[str, Callable[[], Measured]]:
    """How each side is made, by name."""
    case = Case(str(model), ENGINE, labels, label_ids)
    names = [*ours_of(ingresses), *CHAT_PEERS, *ROW_PEERS]

    def at(name: str) -> dict[str, Any]:
        return {"port": FIRST_PORT + names.index(name), "log": folder / f"{name}.log"}

    def ours(name: str, env: dict[str, str]) -> Callable[[], Measured]:
        config = write_config(folder / name, model, port=FIRST_PORT + names.index(name))
        return lambda: Ours(config, model=MODEL, env=env | ports(names.index(name)))

    return {
        OURS: ours(OURS, {}),
        **{f"{OURS}_{name}": ours(f"{OURS}_{name}", INGRESSES[name]) for name in ingresses},
        "vllm_serve": lambda: VllmServe(case, **at("vllm_serve")),
        "ray_serve_llm": lambda: RayServeLlm(case, **at("ray_serve_llm")),
        "ray_serve_llm_direct": lambda: RayServeLlm(case, **at("ray_serve_llm_direct"), direct=True),
        "offline": lambda: OfflineChat(case, log=folder / "offline.log"),
        "run_batch": lambda: RunBatch(case, log=folder / "run_batch.log"),
        "ray_data": lambda: RayData(case, log=folder / "ray_data.log", rows_per_pass=rows),
    }


def write_config(folder: Path, model: Path, *, port: int) -> Path:
    """config.yaml with one replica of the engine, and what frozen servers and this machine's ports need."""
    document = yaml.safe_load((ROOT / "config.yaml").read_text())
    document["http_options"]["port"] = port
    replicas = document["applications"][0]
    kept = {name: replicas["args"]["engine"][name] for name in ("scheduling_policy", "enable_prompt_tokens_details")}
    replicas["args"]["engine"] = {"model": str(model), "served_model_name": MODEL, **ENGINE, **kept}
    # Chats come in turns with rows, whose steps they would shorten for minutes.
    replicas["args"]["sharing"] = {"standby_s": 0}
    # A probe that is due while the server is frozen would fail.
    replicas["deployments"][0].update(num_replicas=1, health_check_period_s=600)
    set_store(document, str(folder / "runs"))
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def ports(number: int) -> dict[str, str]:
    """Ports for HAProxy and replicas of one of several servers that are up."""
    first = {
        "RAY_SERVE_HAPROXY_STATS_PORT": 8430,
        "RAY_SERVE_HAPROXY_METRICS_PORT": 9130,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8530,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": 9530,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": 34000 + 99 * number,
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": 44000 + 99 * number,
    }
    found = {name: port + number for name, port in first.items()}
    for kind in ("HTTP", "GRPC"):
        found[f"RAY_SERVE_DIRECT_INGRESS_MAX_{kind}_PORT"] = found[f"RAY_SERVE_DIRECT_INGRESS_MIN_{kind}_PORT"] + 99
    return {name: str(port) for name, port in found.items()}
