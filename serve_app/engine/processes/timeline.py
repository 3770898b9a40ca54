"""Records when each process of a start finishes each stage, in one file that the environment names.

Each line is one small append, so lines do not mix.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from serve_app.engine.host.cpu import is_worker

TIMELINE_ENV = "SERVE_APP_TIMELINE"
# In order of a start, after "start".
STAGES = ("ray", "controller", "process", "import", "config", "weights", "kv_cache", "engine", "first_token")
NEXT = {
    "": "starting Ray",
    "ray": "starting Serve",
    "controller": "starting the replicas' processes",
    "process": "importing vLLM",
    "import": "starting the engines",
    "config": "loading the weights",
    "weights": "making the KV caches",
    "kv_cache": "warming up",
    "engine": "computing a first token",
    "first_token": "waiting for the others",
}


def mark(stage: str, *, file: Path | None = None) -> None:
    """Record that `stage` is finished, in `file` or the environment's."""
    if path := file or os.environ.get(TIMELINE_ENV):
        line = json.dumps({"stage": stage, "at": time.time(), "pid": os.getpid()}) + "\n"
        with open(path, "a") as lines:
            lines.write(line)


def marking(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:

    @wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        mark(stage)
        return result

    return marked


def mark_worker_stages() -> None:
    """Plug-in (pyproject.toml): vLLM's workers record their stages."""
    if TIMELINE_ENV not in os.environ or not is_worker():
        return
    from vllm.v1.worker.gpu_worker import Worker  # also the CPU worker's base

    if not hasattr(Worker.load_model, "__wrapped__"):
        Worker.load_model = marking("weights", Worker.load_model)
        Worker.initialize_from_config = marking("kv_cache", Worker.initialize_from_config)


def under_way(path: Path) -> str:
    """The current stage of a start, and how many processes have finished the last."""
    lines = path.read_text().splitlines() if path.exists() else []
    done = [stage for stage in (json.loads(line)["stage"] for line in lines) if stage in STAGES]
    last = max(done, key=STAGES.index, default="")
    count = f" ({done.count(last)} process{'es' if done.count(last) > 1 else ''})" if last in STAGES[2:] else ""
    return f"{NEXT[last]}{count}"


def read(path: Path) -> dict[str, float]:
    """Seconds until all processes had finished each stage, as {"<stage>_s": …}; empty without a file."""
    ended: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        ended[entry["stage"]] = max(ended.get(entry["stage"], 0.0), entry["at"])
    return {f"{stage}_s": round(ended[stage] - ended["start"], 1) for stage in STAGES if stage in ended}
