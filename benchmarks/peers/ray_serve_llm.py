"""ray.serve.llm: Ray's own OpenAI application on Serve, on a local Ray of its own.

Knows `build_openai_app` and its settings. It runs in the environment that ray_serve_llm_env.sh makes, as ray[llm]
pins an older vLLM than this project has: the engine is vLLM 0.29.0's, the rest of the versions are the same.

Settings are its defaults (two ingress replicas; chunks of a stream are collected for 50 ms), but for what CPU needs
and for health checks, which a frozen server cannot answer. `direct` is what Ray's guide to high throughput asks for:
HAProxy straight in front of the server, without its ingress (docs.ray.io, "Direct streaming"; experimental there).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.peers import Case
from benchmarks.peers.vllm_serve import MODEL, HttpServer
from serve_app.errors import BadSettings
from serve_app.models.default import cache_dir

# Room for all replicas at once; what Ray counts, not cores.
LOGICAL_CPUS = 8
OBJECT_STORE_BYTES = 256 << 20
HEALTH_CHECK_PERIOD_S = 600
HIGH_THROUGHPUT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    # Our own HAProxy and replica, frozen beside it, have the default ports.
    "RAY_SERVE_HAPROXY_STATS_PORT": "8414",
    "RAY_SERVE_HAPROXY_METRICS_PORT": "9111",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "8510",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": "9510",
    "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": "32000",
    "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": "33000",
    "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": "42000",
    "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": "43000",
}
ORDINARY = dict.fromkeys(list(HIGH_THROUGHPUT)[:3], "0")


class RayServeLlm(HttpServer):
    """ray.serve.llm with one replica. Raises BadSettings without its environment."""

    def __init__(self, case: Case, *, port: int, log: Path, direct: bool = False) -> None:
        python = cache_dir() / "peers" / "ray-data" / "bin" / "python"
        if not python.exists():
            raise BadSettings(f"{python} is missing: run benchmarks/peers/ray_serve_llm_env.sh first")
        command = [str(python), "-m", "benchmarks.peers.ray_serve_llm", str(port), msgspec.json.encode(case).decode()]
        env = {
            "RAY_worker_niceness": "0",  # by default 15, which no other side's engine has
            "RAY_USAGE_STATS_ENABLED": "0",
            **(HIGH_THROUGHPUT if direct else ORDINARY),
        }
        super().__init__(command, case, port=port, log=log, env=env)


def main() -> None:
    """The server's side: the port and the case are the arguments. Ends at SIGTERM."""
    import ray
    from ray import serve
    from ray.serve.llm import build_openai_app

    port, case = int(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Case)
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_openai_app({"llm_configs": [llm_config(case)]}), blocking=True)


def llm_config(case: Case) -> dict[str, Any]:
    """One replica on CPU; `mp` workers, which it chooses itself there."""
    return {
        "model_loading_config": {"model_id": MODEL, "model_source": case.model},
        "engine_kwargs": {**case.engine, "enable_prompt_tokens_details": True},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "accelerator_type": None,
        "deployment_config": {
            "num_replicas": 1,
            "health_check_period_s": HEALTH_CHECK_PERIOD_S,
            "health_check_timeout_s": HEALTH_CHECK_PERIOD_S,
        },
    }


if __name__ == "__main__":
    main()
