"""What a first start would do and keep, done at set-up: bytecode, the default model, vLLM's look at the model's class.

Run by cluster/setup.sh with the environment's Python. Two processes at once, about as long as each other: one makes
the model, which compiles torch and transformers; one imports what the processes of a server import. So 7,000 files
are compiled, where `compileall` compiles all 29,618, every package's tests and examples among them.
Writes `.venv/setup.json`, how long set-up took. Does nothing where the same pins were warmed before.
"""

from __future__ import annotations

import argparse
import compileall
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv"

# What a server's processes have imported: two replicas' start compiled these, and they bring the rest. Those without
# torch come first: meanwhile the other process compiles torch. `package/name` is each module of that name below.
SERVER_MODULES = """
httpx httpcore httptools uvicorn.lifespan.on uvicorn.protocols.http.auto uvicorn.protocols.websockets.auto
websockets.asyncio.server anyio._backends._asyncio pyarrow.parquet pyarrow.fs
ray.serve ray.scripts.scripts ray.serve.scripts ray.dashboard.dashboard ray.dashboard.agent
ray.dashboard.http_server_head ray.dashboard.http_server_agent ray.dashboard/* ray._private.log_monitor
ray._private.runtime_env/* ray._private.metrics_agent ray._private.workers.default_worker ray.autoscaler.v2.sdk
ray.serve.request_router ray.serve._private.controller ray.serve._private.proxy ray.serve._private.replica
model_hosting_container_standards.sagemaker prometheus_fastapi_instrumentator sse_starlette
vllm vllm.entrypoints/api_router vllm.entrypoints.openai.api_server vllm.entrypoints.launchers.app
vllm.entrypoints.launchers.cli_args vllm.entrypoints.launchers.api_server.app_state vllm.renderers.hf
vllm.tool_parsers.hermes_tool_parser vllm.v1.engine.async_llm vllm.v1.metrics.ray_wrappers vllm.v1.metrics.reader
vllm.v1.engine.core vllm.v1.executor.multiproc_executor vllm.v1.worker.cpu_worker
vllm.v1.attention.backends.cpu_attn vllm.distributed.device_communicators.cpu_communicator
vllm.model_executor.models.llama compressed_tensors vllm.model_executor.layers.quantization.online.base
vllm.plugins.lora_resolvers.filesystem_resolver vllm.plugins.lora_resolvers.hf_hub_resolver
torch._inductor.codegen.cuda_combined_scheduling torch.distributed.tensor.experimental._attention torch.export._trace
sympy.combinatorics
serve_app/*
"""
DEFAULT_MODEL_CLASS = "LlamaForCausalLM"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this, in this process")
    parser.add_argument("--installer", default="", help="what installed the packages, for setup.json")
    parser.add_argument("--began", type=float, default=time.time(), help="when set-up began, in Unix seconds")
    parser.add_argument("--installed", type=float, default=time.time(), help="when its packages were installed")
    options = parser.parse_args()
    if options.part:
        PARTS[options.part]()
        return
    stamp, pins = VENV / "warm", digest()
    if stamp.exists() and stamp.read_text() == pins:
        run_part("model")  # its cache is elsewhere, and may have been emptied; a moment where it was not
        print("set up: these pins were before")
        return
    with ThreadPoolExecutor() as pool:
        model_s, bytecode_s = pool.map(run_part, ("model", "bytecode"))
    stamp.write_text(pins)
    report = {
        "setup_s": round(time.time() - options.began, 1),
        "packages_s": round(options.installed - options.began, 1),
        "bytecode_s": bytecode_s,
        "model_s": model_s,
        "installer": options.installer,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (VENV / "setup.json").write_text(json.dumps(report) + "\n")
    print(
        f"set up in {report['setup_s']} s: packages {report['packages_s']} s by {options.installer}, "
        f"then at once bytecode {bytecode_s} s and the model {model_s} s"
    )


def digest() -> str:
    """Of what decides which bytecode there is to write."""
    found = hashlib.sha256(sys.version.encode())
    for path in (ROOT / "requirements.txt", Path(__file__)):
        found.update(path.read_bytes())
    return found.hexdigest()


def run_part(part: str) -> float:
    """Seconds that a part took, in a process of its own. Raises SystemExit where it failed."""
    began = time.perf_counter()
    # Some environments forbid bytecode, and then every start compiles anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, __file__, "--part", part]
    code = subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode
    if code:
        raise SystemExit(f"{part}: failed with {code}, see above")
    return round(time.perf_counter() - began, 1)


def make_model() -> None:
    """Make the default model, in half the time (30 s of a slow core for 53 s).

    transformers reads the GGUF three times and maps its names 397 times; here once. The files are the same.
    """
    import gguf

    from serve_app.models.default import prepare

    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    print(prepare())


def write_bytecode() -> None:
    """Import a server's modules, which compiles them. One that is not there is no failure: names move."""
    for name in SERVER_MODULES.split():
        package, _, below = name.partition("/")
        for module in modules_below(package, below) if below else (package,):
            attempt(module, functools.partial(importlib.import_module, module))
    # Ray's agent of runtime environments has its own aiohttp, which cannot be imported beside the other.
    compileall.compile_dir(spec_folder("ray._private.runtime_env.agent") / "thirdparty_files", quiet=2)
    attempt("the model's class", inspect_model_class)


def modules_below(package: str, name: str) -> list[str]:
    """Of ("vllm.entrypoints", "api_router"): each module of that name, at any depth."""
    folder = spec_folder(package)
    found = [path.relative_to(folder) for path in sorted(folder.rglob(f"{name}.py"))]
    left_out = {"tests", "thirdparty_files", "__main__.py", "__init__.py"}
    return [".".join((package, *path.with_suffix("").parts)) for path in found if not left_out & {*path.parts}]


def spec_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {package} is not installed")
    return Path(spec.origin).parent


def attempt(what: str, do: Callable[[], Any]) -> None:
    try:
        do()
    except (Exception, SystemExit) as error:
        print(f"not warmed: {what}: {error!r}", file=sys.stderr)


def inspect_model_class() -> None:
    """Have vLLM look at the default model's class and keep what it saw, in VLLM_CACHE_ROOT.

    It looks in a process of its own, which imports vLLM anew (13 s of a slow core), so as not to touch CUDA; here
    all is imported and thrown away soon. Without this the first start does it.
    """
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda look: look()
    registry.ModelRegistry.models[DEFAULT_MODEL_CLASS].inspect_model_cls()


PARTS: dict[str, Callable[[], None]] = {"model": make_model, "bytecode": write_bytecode}

if __name__ == "__main__":
    main()
