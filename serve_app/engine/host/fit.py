"""An engine fitted to a CPU host's processor and memory, before vLLM starts and without importing it.

Used by the replica for itself, and by the config check for all replicas of the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from serve_app.engine.host.cpu import check_memory, kv_bytes_per_rank, worker_bytes
from serve_app.engine.host.processor import FastType, fast_type
from serve_app.models.catalog import read_config, weight_bytes


class Fit(NamedTuple):
    """A worker's data type, if nobody asked for one, and bytes of memory without and for KV cache."""

    chosen: FastType | None
    worker: int
    kv: int


def fit_to_host(
    options: Mapping[str, Any], model: Path | str, *, replicas: int, total: int, free: int, checked: int = 1
) -> Fit:
    """Fit an engine of these vLLM options, of which `replicas` share a host of `total` bytes of memory.

    `model` is `options["model"]`, resolved. Raises NotEnoughMemory unless `checked` of them fit into the `free` bytes.
    """
    ranks = int(options.get("tensor_parallel_size") or 1)
    chosen = choose_for(options, model)
    worker = worker_bytes(weight_bytes(model, chosen.dtype if chosen else _asked(options)), ranks)
    kv = kv_bytes_per_rank(
        options.get("kv_cache_memory_bytes"), worker=worker, ranks=ranks, replicas=replicas, total=total
    )
    check_memory(worker + kv, kv, workers=ranks * checked, free=free, dtype=chosen.dtype if chosen else "")
    return Fit(chosen, worker, kv)


def choose_for(options: Mapping[str, Any], model: Path | str) -> FastType | None:
    """The data type that is fast here, if the model's own is not; None leaves vLLM's or the user's choice.

    Quantised weights keep vLLM's choice: their kernels are made for one type of activations.
    """
    if _asked(options) is not None or options.get("quantization") or "quantization_config" in read_config(model):
        return None
    fast = fast_type()
    return fast if fast.dtype == "float32" else None


def _asked(options: Mapping[str, Any]) -> str | None:
    dtype = options.get("dtype")
    return None if dtype in (None, "auto") else str(dtype)
