"""The driver against its peers: rows of one kind, one engine at TP=2 on the same cores, in turns in one run.

Ours is one replica behind Serve, fed by the driver; peers are in `benchmarks/peers/`. Each side scores people that
nobody has seen, in each pass, so only the shared prefix is cached; the order of the sides rotates from pass to pass,
only one side is busy at a time, starting is in no figure, and the first pass is warm-up. A ratio is the driver's rate
over the peer's, in the same pass; the median over passes is reported.

Against offline vLLM the driver's clock runs from its first chunk to its last commit, as offline gets its token ids
ready-made; against all others from submitting the job over HTTP to hearing that it is complete.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.common import console, in_turn, machine, publish
from benchmarks.interactive import durability_cost, interactive_overhead
from benchmarks.peers import SETTLE_S, Case, Pass, Peer
from benchmarks.peers.http32 import Http32
from benchmarks.peers.http_semaphore import HttpSemaphore
from benchmarks.peers.offline import Offline
from benchmarks.peers.ray_data import RayData
from benchmarks.peers.run_batch import RunBatch
from benchmarks.scale import PeakMemory
from benchmarks.scale import run as run_simulated
from benchmarks.simulated import InstantPool
from serve_app.client.populations import PopulationClient
from serve_app.dispatch.render import TokenRenderer
from serve_app.engine.host.processor import fast_type
from serve_app.errors import ServeAppError
from serve_app.models.default import NAME, prepare
from serve_app.schema import ReplicaInfo, Row, unpack_tokens
from serve_app.serving.launch.local import local_serve
from serve_app.spec import JobSpec
from serve_app.workloads.ctr.asking.prompts import NO, WORKLOAD, YES, render_rows
from serve_app.workloads.ctr.people.profiles import generate_profiles

# Given to all sides: defaults differ between vLLM's server and its offline class, and the peers would take the model's
# own type though it is slow here.
ENGINE: dict[str, Any] = {
    "dtype": fast_type().dtype,
    "tensor_parallel_size": 2,
    "max_model_len": 4096,
    "kv_cache_memory_bytes": 512 << 20,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 4096,
    "block_size": 32,
    "enforce_eager": True,
}
PORT = 8765
# ratio -> (peer, the driver's rate that it is compared with, aim)
RATIOS = {
    "driver_vs_offline": ("offline", "rows_per_s", 1.0),
    "driver_vs_run_batch": ("run_batch", "wall_rows_per_s", 1.5),
    "driver_vs_http32": ("http32", "wall_rows_per_s", 5.0),
    "driver_vs_http32_scored": ("http32_scored", "wall_rows_per_s", 2.0),
    "driver_vs_http_semaphore": ("http_semaphore", "wall_rows_per_s", None),
    "driver_vs_ray_data": ("ray_data", "wall_rows_per_s", 1.5),
}
PEERS = tuple(peer for peer, _, _ in RATIOS.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--quick", action="store_true", help="256 rows and 3 passes instead of 512 and 5")
    parser.add_argument(
        "--peers", default="", help="only these, by comma: " + ", ".join(p for p, _, _ in RATIOS.values())
    )
    args = parser.parse_args()
    rows, passes = (256, 3) if args.quick else (512, 5)
    hardware = machine()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = write_config(Path(folder))
        log = Path(folder) / "serve.log"
        base_url = stack.enter_context(local_serve(config, log=log, on_wait=console.print))
        sides = start_sides(base_url, rows, Path(folder), stack, only=[p for p in args.peers.split(",") if p])
        idle = idle_cpu_share()
        measured = [one_pass(number, rows, sides) for number in range(passes + 1)][1:]
        own = asyncio.run(own_figures(Path(folder), rows))
    own["rss_growth_mb_per_million_rows"] = memory_growth()
    report(measured, rows, {**own, "idle_cluster_cores": idle, **hardware}, args.json)


def write_config(folder: Path, *, standby: bool = False, port: int = PORT) -> Path:
    """config.yaml with one replica, the engine settings above and a store and port of its own.

    Without `standby`, online requests in a peer's turn do not shorten populations' steps in ours (engine/scheduler.py).
    """
    document = yaml.safe_load(Path("config.yaml").read_text())
    # Files and batches have processes of their own, which are not measured here.
    replicas, populations, *_ = document["applications"] = document["applications"][:2]
    document["http_options"]["port"] = port
    options = {"scheduling_policy": "priority", "enable_prompt_tokens_details": True}
    replicas["args"]["engine"] = {"model": NAME, **ENGINE, **options}
    # A probe is a token, and vLLM's workers spin for a second after each: every 5 s, they take a fifth of both cores
    # from whoever is measured meanwhile.
    replicas["deployments"][0].update(num_replicas=1, health_check_period_s=600)
    if not standby:
        replicas["args"]["sharing"] = {"standby_s": 0}
    populations["args"]["store"] = str(folder / "runs")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class Driver:
    """Rows through the driver and a replica; see `peers.Peer`."""

    def __init__(self, base_url: str, shared_tokens: int) -> None:
        self._client = PopulationClient(base_url)
        self._shared_tokens = shared_tokens

    def start(self) -> None:
        """The server runs already."""

    def run(self, rows: Sequence[Row]) -> Pass:
        time.sleep(SETTLE_S)
        cpu = CpuTime(self._client.replicas())
        started = time.perf_counter()
        job_id = self._client.submit(JobSpec.of(rows, workload=WORKLOAD, labels=[YES, NO]))
        while (status := self._client.status(job_id)).state.active:
            time.sleep(0.2)  # each question costs proxy and driver some 8 ms of the cores that compute
        wall_s = time.perf_counter() - started
        cpu_s = cpu.spent()
        outcomes = [o for o in self._client.outcomes(job_id) if o.value]
        margins = [o.value["logprobs"][YES] - o.value["logprobs"][NO] for o in outcomes if o.value]
        time.sleep(SETTLE_S)
        return {
            "rows": len(rows),
            "ok": len(outcomes),
            "wall_s": wall_s,
            "rows_per_s": len(rows) / status.run_s,
            "wall_rows_per_s": len(rows) / wall_s,
            "cached_share": status.cached_tokens / status.prompt_tokens,
            "cached_share_of_shared_prefix": status.cached_tokens / (self._shared_tokens * len(rows)),
            "margin": statistics.fmean(margins),
            **{f"cpu_{kind}": round(seconds, 2) for kind, seconds in cpu_s.items()},
        }

    def stop(self) -> None:
        """Whoever started the server stops it."""


class CpuTime:
    """Seconds of processor time by kind of process, from now on: what a driver could win at most is not `workers`.

    kinds: `workers` (the model, and its ranks' waiting for each other), `engine_core`, `replica`, `driver`, `ray`
    (raylet, GCS, controller, proxy, dashboard), `benchmark` (the client), `other`.
    """

    def __init__(self, replicas: Sequence[ReplicaInfo]) -> None:
        self._kinds = {os.getpid(): "benchmark"}
        for replica in replicas:
            workers = replica.engine.worker_pids
            self._kinds |= {replica.pid: "replica", psutil.Process(workers[0]).ppid(): "engine_core"}
            self._kinds |= dict.fromkeys(workers, "workers")
        self._before = self._now()

    def spent(self) -> dict[str, float]:
        """Seconds since it was made."""
        spent = dict.fromkeys(("workers", "engine_core", "replica", "driver", "ray", "benchmark", "other"), 0.0)
        for pid, (kind, seconds) in self._now().items():
            spent[kind] += seconds - self._before.get(pid, (kind, 0.0))[1]
        return spent

    def _now(self) -> dict[int, tuple[str, float]]:
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = (self._kind(process), times.user + times.system)
        return found

    def _kind(self, process: psutil.Process) -> str:
        if kind := self._kinds.get(process.pid):
            return kind
        command = " ".join(process.cmdline())
        if "populations:Driver" in command:
            return "driver"
        return "ray" if re.search(r"ray::|/ray/|raylet|gcs_server|serve run", command) else "other"


def start_sides(base_url: str, rows: int, folder: Path, stack: ExitStack, *, only: list[str]) -> dict[str, Peer]:
    """The driver and every peer that can run here, ready; those that cannot are named and left out."""
    model = str(prepare())
    renderer = TokenRenderer(model)
    case = Case(model, ENGINE, (YES, NO), renderer.label_ids((YES, NO)))
    makers: dict[str, Callable[[], Peer]] = {
        "offline": lambda: Offline(case, log=folder / "offline.log"),
        "run_batch": lambda: RunBatch(case, log=folder / "run_batch.log"),
        "http32": lambda: Http32(base_url, case, generate=True),
        "http32_scored": lambda: Http32(base_url, case, generate=False),
        "http_semaphore": lambda: HttpSemaphore(base_url, case),
        "ray_data": lambda: RayData(case, log=folder / "ray_data.log", rows_per_pass=rows),
    }
    sides: dict[str, Peer] = {"driver": Driver(base_url, shared_tokens(renderer))}
    for name, make in makers.items():
        if only and name not in only:
            continue
        console.print(f"starting {name}")
        try:
            peer = make()
            stack.callback(peer.stop)
            peer.start()
            sides[name] = peer
        except ServeAppError as error:
            console.print(f"{name} is left out: {error}", markup=False)
    return sides


def people(number: int, count: int) -> list[Row]:
    """Rows that no pass but this one has."""
    return render_rows(generate_profiles(count, seed=1000 + number), "New smartphone launch", "facebook")


def shared_tokens(renderer: TokenRenderer) -> int:
    """Tokens that all prompts share, in whole blocks: no cache can hold more of them."""
    prompts = [prompt for prompt in renderer.prompts(people(0, 64)) if isinstance(prompt, bytes)]
    first, last = unpack_tokens(min(prompts)), unpack_tokens(max(prompts))
    common = next(i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return common // int(ENGINE["block_size"]) * int(ENGINE["block_size"])


def one_pass(number: int, count: int, sides: dict[str, Peer]) -> dict[str, Pass]:
    """All sides, each on new people of its own: several of them share our replica, whose cache would know the rows."""
    names = list(sides)
    result = {}
    for name in in_turn(names, number):
        # Over HTTP a row takes two to ten times as long, and a rate is seen in fewer of them: whole batches of 32.
        size = max(64, count // 4) if name.startswith("http") else count
        result[name] = sides[name].run(people(100 * number + names.index(name), size))
        if result[name]["ok"] != size:
            console.print(f"[red]{name}: {result[name]['ok']} of {size} rows answered[/red]")
    shown = ", ".join(f"{name} {_rate(one):.1f}" for name, one in result.items())
    console.print(f"pass {number}, rows/s: {shown}")
    return result


def idle_cpu_share(seconds: float = 5.0) -> float:
    """Cores that this machine spends while every side waits: it is taken from whoever is measured."""
    psutil.cpu_percent(None)
    time.sleep(seconds)
    return round(psutil.cpu_percent(None) / 100 * (psutil.cpu_count() or 1), 3)


async def own_figures(folder: Path, rows: int) -> dict[str, Any]:
    """What has no peer: a commit's price and an interactive call's overhead, from this process by handle."""
    console.print("durability and interactive calls")
    return {
        **await durability_cost(folder, [people(2000 + i, 2 * rows) for i in range(5)]),
        **await interactive_overhead([people(3000 + i, 512) for i in range(6)]),
    }


def memory_growth(rows: int = 1_000_000) -> float:
    """MB a million rows by which the driver grows in one long job, with replicas that answer at once."""
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        asyncio.run(run_simulated(Path(folder), InstantPool(8), rows))
        return round(memory.slope(rows) * 1e6, 2)


def report(measured: list[dict[str, Pass]], rows: int, others: dict[str, Any], path: Path | None) -> None:
    """Print and save."""
    result: dict[str, Any] = {}
    lines = []
    for ratio, (peer, rate, wanted) in RATIOS.items():
        if peer not in measured[0]:
            continue
        ratios = [_number(one["driver"][rate]) / _number(one[peer]["rows_per_s"]) for one in measured]
        result[ratio] = round(statistics.median(ratios), 4)
        result[f"{ratio}_passes"] = [round(one, 4) for one in ratios]
        pace = statistics.median(_number(one[peer]["rows_per_s"]) for one in measured)
        aimed = "" if wanted is None else f"{wanted:g}"
        lines.append([peer, f"{pace:.1f}", f"{result[ratio]:.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}", aimed])
    shares = [_number(one["driver"]["cached_share_of_shared_prefix"]) for one in measured]
    result["cached_share_of_shared_prefix"] = round(statistics.median(shares), 4)
    result |= {f"{name}_passes": [one[name] for one in measured] for name in measured[0]}
    result["driver_cpu_share"] = cpu_share([one["driver"] for one in measured])
    result |= {"rows_per_pass": rows, "passes": len(measured), "workload": f"{WORKLOAD}, one token, two labels"}
    result |= {"engine": {"model": NAME, **ENGINE}, **others}
    pace = statistics.median(_number(one["driver"]["wall_rows_per_s"]) for one in measured)
    lines.insert(0, ["driver", f"{pace:.1f}", "", "", ""])
    for key, aim in (
        ("cached_share_of_shared_prefix", "0.98"),
        ("durability_cost", "0.98"),
        ("interactive_overhead_ms", ""),
        ("rss_growth_mb_per_million_rows", ""),
        ("idle_cluster_cores", ""),
    ):
        lines.append([key, "", f"{result[key]:.3f}", "", aim])
    lines += [
        [f"processor time of {kind}", "", f"{share:.3f}", "", ""] for kind, share in result["driver_cpu_share"].items()
    ]
    title = f"the driver and its peers ({rows} rows a pass, {others['gflops']} GFLOP/s {others['dtype']})"
    publish(title, ["", "rows/s", "driver is × as fast", "passes", "aim"], lines, result, path)


def cpu_share(passes: Sequence[Pass]) -> dict[str, float]:
    """Share of each kind of process in the processor time that the driver's passes took together."""
    kinds = [name for name in passes[0] if name.startswith("cpu_")]
    total = sum(_number(one[kind]) for one in passes for kind in kinds)
    return {kind[4:]: round(sum(_number(one[kind]) for one in passes) / total, 4) for kind in kinds}


def _rate(one: Pass) -> float:
    return _number(one.get("wall_rows_per_s") or one["rows_per_s"])


def _number(value: float | None) -> float:
    return float(value or 0.0)


if __name__ == "__main__":
    main()
