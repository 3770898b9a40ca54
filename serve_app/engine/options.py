"""Which options the installed vLLM has, found without importing it (an import takes about 9 s).

Names are read from the source of vLLM's option classes.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from serve_app.errors import BadSettings, UnknownOption

# Where vLLM 0.32 defines its options; `tests/engine/test_vllm_api.py` fails when a release moves them. A name in both
# is the engine's, which comes last; the front end gets the engine's options too.
OPTION_CLASSES = {
    "front end": ("entrypoints/launchers/cli_args.py", ("BaseFrontendArgs", "FrontendArgs")),
    "engine": ("engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs")),
}
# Checked here, as a wrong one would otherwise show only at the engine's start; vLLM checks the rest.
COUNTS = ("tensor_parallel_size", "block_size", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes")
# Serve owns the address, the number of front ends and the process model.
OWNED = {
    "host": "http_options.host in config.yaml",
    "port": "http_options.port in config.yaml",
    "uds": "http_options in config.yaml",
    "api_key": "an authenticating proxy in front: the key would not cover /v1/populations",
    "distributed_executor_backend": "nothing: the replica always uses the multiprocessing executor ('mp')",
}


@cache
def known_options() -> dict[str, str]:
    """Map each option's name to its kind, 'engine' or 'front end'.

    Raises BadSettings when vLLM is not installed.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise BadSettings("vLLM is not installed: run `make setup`, or set `simulated` to run without an engine")
    root = Path(spec.origin).parent
    return {
        name: kind
        for kind, (file, classes) in OPTION_CLASSES.items()
        for node in ast.parse((root / file).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for name in _fields(node)
    }


def _fields(node: ast.ClassDef) -> list[str]:
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_")
    ]


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UnknownOption, naming the nearest match, or BadSettings, if `options` cannot be given to vLLM."""
    known = known_options()
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see `vllm serve --help` for the names"
            raise UnknownOption(f"vLLM has no option of that name; {hint}", field=f"engine.{name}")
        if name in OWNED and value != "mp":
            raise BadSettings(f"engine.{name} cannot be set here; use {OWNED[name]}")
    if not options.get("model"):
        raise BadSettings("engine.model is missing: give a prepared model's name, a folder or a hub name")
    for name in COUNTS:
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise BadSettings(f"engine.{name} must be a whole number of at least 1, not {value!r}")
