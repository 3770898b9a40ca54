"""The driver against offline vLLM: the same prompts, the same engine settings, in turns in one run.

One replica at TP=2 behind Serve, fed by the driver, and `LLM.generate` in this process at TP=2 on the same cores.
Each pass scores people that neither has seen (so only the shared prefix is cached), first one side, then the
other, the order swapped at each pass. Both sides get token ids and both rates leave tokenising out: the driver's
time is from its first chunk to its last commit, offline's is the call. The first pass is warm-up and not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import console, machine, publish
from serve_app.client.populations import PopulationClient
from serve_app.driver.render import Renderer
from serve_app.engine.cpu import available_cores, binding
from serve_app.models.default import NAME, prepare
from serve_app.schema import Row
from serve_app.serving.local import local_serve
from serve_app.workloads.ctr.profiles import generate_profiles
from serve_app.workloads.ctr.prompts import NO, WORKLOAD, YES, render_rows

# Given to both sides: defaults differ between vLLM's server and its offline class.
ENGINE = {
    "tensor_parallel_size": 2,
    "max_model_len": 4096,
    "kv_cache_memory_bytes": 512 << 20,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 4096,
    "block_size": 32,
    "enforce_eager": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--quick", action="store_true", help="256 rows and 3 passes instead of 1,000 and 5")
    args = parser.parse_args()
    rows, passes = (256, 3) if args.quick else (1000, 5)
    hardware = machine()
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder))
        with local_serve(config, log=Path(folder) / "serve.log", on_wait=console.print) as base_url:
            driver = DriverSide(base_url)
            offline = OfflineSide()
            measured = [one_pass(number, rows, driver, offline) for number in range(passes + 1)][1:]
    report(measured, rows, hardware, args.json)


def write_config(folder: Path) -> Path:
    """config.yaml with one replica, the engine settings above and a store and port of its own."""
    document = yaml.safe_load(Path("config.yaml").read_text())
    replicas, populations = document["applications"]
    document["http_options"]["port"] = 8765
    replicas["args"]["engine"] = {"model": NAME, **ENGINE, "scheduling_policy": "priority"}
    replicas["deployments"][0]["num_replicas"] = 1
    populations["args"]["store"] = str(folder / "runs")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class DriverSide:
    """Rows through the driver and a replica."""

    def __init__(self, base_url: str) -> None:
        self._client = PopulationClient(base_url)

    def run(self, rows: Sequence[Row]) -> dict[str, float]:
        started = time.perf_counter()
        job_id = self._client.submit(rows, workload=WORKLOAD, labels=[YES, NO])
        status = self._client.wait(job_id)
        if status["ok"] != len(rows):
            raise SystemExit(f"the driver's pass is void: {status}")
        return {
            "rows_per_s": len(rows) / status["run_s"],
            "cached_share": status["cached_tokens"] / status["prompt_tokens"],
            "wall_s": time.perf_counter() - started,
        }


class OfflineSide:
    """The same prompts through `LLM.generate`, as token ids."""

    def __init__(self) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = binding(2, 1, slot=0, cores=available_cores())
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM, SamplingParams

        folder = str(prepare())
        self._renderer = Renderer(folder)
        labels = self._renderer.label_ids([YES, NO])
        self._params = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=list(labels), detokenize=False)
        self._llm: Any = LLM(model=folder, distributed_executor_backend="mp", disable_log_stats=True, **ENGINE)

    def run(self, rows: Sequence[Row]) -> dict[str, float]:
        prompts = [{"prompt_token_ids": list(ids)} for ids in self._renderer.prompts(rows)]
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, self._params, use_tqdm=False)
        wall_s = time.perf_counter() - started
        tokens = sum(len(output.prompt_token_ids) for output in outputs)
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        return {"rows_per_s": len(rows) / wall_s, "cached_share": cached / tokens, "wall_s": wall_s}


def one_pass(number: int, count: int, driver: DriverSide, offline: OfflineSide) -> dict[str, dict[str, float]]:
    """Both sides on the same, new people."""
    rows = render_rows(generate_profiles(count, seed=1000 + number), "New smartphone launch", "facebook")
    sides: list[tuple[str, DriverSide | OfflineSide]] = [("driver", driver), ("offline", offline)]
    result = {name: side.run(rows) for name, side in (sides if number % 2 else sides[::-1])}
    console.print(f"pass {number}: " + ", ".join(f"{n} {r['rows_per_s']:.1f} rows/s" for n, r in result.items()))
    return result


def report(measured: list[dict[str, dict[str, float]]], rows: int, hardware: dict[str, Any], path: Path | None) -> None:
    ratios = [one["driver"]["rows_per_s"] / one["offline"]["rows_per_s"] for one in measured]
    median = {side: statistics.median(one[side]["rows_per_s"] for one in measured) for side in ("driver", "offline")}
    cached = {side: statistics.median(one[side]["cached_share"] for one in measured) for side in ("driver", "offline")}
    result = {
        "driver_vs_offline": round(statistics.median(ratios), 4),
        "driver_vs_offline_passes": [round(ratio, 4) for ratio in ratios],
        "driver_rows_per_s": round(median["driver"], 2),
        "offline_rows_per_s": round(median["offline"], 2),
        "driver_cached_share": round(cached["driver"], 4),
        "offline_cached_share": round(cached["offline"], 4),
        "rows_per_pass": rows,
        "passes": len(measured),
        "workload": f"{WORKLOAD}, one token, two labels",
        "engine": {"model": NAME, **ENGINE},
        **hardware,
    }
    lines = [
        [str(i + 1), *(f"{one[side]['rows_per_s']:.1f}" for side in ("driver", "offline")), f"{ratio:.3f}"]
        for i, (one, ratio) in enumerate(zip(measured, ratios, strict=True))
    ]
    lines.append(
        ["median", f"{median['driver']:.1f}", f"{median['offline']:.1f}", f"{result['driver_vs_offline']:.3f}"]
    )
    title = f"driver against offline LLM.generate, rows/s ({rows} rows a pass, {hardware['bf16_gflops']} GFLOP/s bf16)"
    publish(title, ["pass", "driver", "offline", "ratio"], lines, result, path)


if __name__ == "__main__":
    main()
