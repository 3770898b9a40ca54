"""Kills at random moments, and a count of what was lost: drivers, replicas and stores.

Each simulated run is one job in a driver process of its own with three SIMULATED replicas (the answers are a known
function of the prompt). The driver is killed with SIGKILL a few times and started again, replicas are killed and
join, and in every other run the store is an S3 server behind a connection that is cut for a while. Each real run is a
job on real vLLM: the driver's and a replica's process are killed with SIGKILL while it runs. The results are read by
pyarrow from the store's files, with nothing of serve_app, and compared with what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from benchmarks.chaos.exactly_once import compare, read_results
from benchmarks.chaos.flaky_store import FlakyStore
from benchmarks.common import console, publish

JOB = "chaos"
PROMPT = "The same beginning for all of them, then the row's own: {word}"
LABELS = ("Yes", "No")
KILLS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--runs", type=int, default=50, help="runs with simulated replicas")
    parser.add_argument("--real", type=int, default=3, help="runs on real vLLM")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; printed, to run it again")
    parser.add_argument("--child", nargs=3, metavar=("STORE", "SOURCE", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return asyncio.run(child(args.child[0], args.child[1], int(args.child[2])))
    console.print(f"seed {args.seed}")
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = stack.enter_context(FlakyStore()) if args.runs else None
        for number in range(args.runs):
            found = simulated_run(Path(folder) / str(number), random.Random(args.seed + number), store, number)
            total.update(found)
            console.print(f"run {number + 1}: {dict(found)}")
        if args.real:
            for number, found in enumerate(real_runs(Path(folder) / "real", random.Random(args.seed), args.real)):
                total.update({**found, "real_runs": 1})
                console.print(f"real run {number + 1}: {dict(found)}")
    keys = ("rows", "lost", "duplicated", "defaulted", "driver_kills", "replica_kills", "store_cuts", "real_runs")
    result = {"runs": args.runs + args.real, "simulated_runs": args.runs, "seed": args.seed}
    result |= {key: total[key] for key in keys}
    publish("chaos", ["", ""], [[key, f"{value:,}"] for key, value in result.items()], result, args.json)
    if total["lost"] or total["duplicated"] or total["defaulted"]:
        sys.exit(1)


# --- simulated replicas ---


def simulated_run(folder: Path, rng: random.Random, store: FlakyStore | None, number: int) -> Counter[str]:
    """One job with its kills; counts of rows, kills and faults in the results."""
    folder.mkdir(parents=True)
    rows = rng.randint(300, 1500)
    source = folder / "rows.parquet"
    words = [f"{rng.getrandbits(32):08x}" for _ in range(rows)]
    pq.write_table(pa.table({"custom_id": [f"row-{i}" for i in range(rows)], "word": words}), source)
    remote = store is not None and number % 2 == 1
    url = store.url(f"run-{number}") if store is not None and remote else str(folder / "runs")
    counts: Counter[str] = Counter(rows=rows)
    kills = rng.randint(1, KILLS)
    for attempt in range(kills + 1):
        command = [sys.executable, "-m", "benchmarks.chaos", "--child", url, str(source), str(rng.getrandbits(30))]
        with open(folder / f"child-{attempt}.log", "w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert_started(process, folder)
        last = attempt == kills
        if not last:
            moment = time.monotonic() + rng.uniform(0.0, 1.0)
            if remote and store is not None and rng.random() < 0.7:
                store.cut(rng.uniform(0.1, 0.8))
                counts["store_cuts"] += 1
            time.sleep(max(0.0, moment - time.monotonic()))
            process.send_signal(signal.SIGKILL)
            counts["driver_kills"] += 1
        out, _ = process.communicate(timeout=120)
        counts["replica_kills"] += out.count("killed")
        if not last and process.returncode == 0:  # it was done before it could be killed
            counts["driver_kills"] -= 1
            break
    if process.returncode != 0:
        raise SystemExit(f"the driver's last run failed: see {folder}:\n{_tail(folder)}")
    expected = {f"row-{i}": _answer(PROMPT.format(word=word)) for i, word in enumerate(words)}
    filesystem, path = pyarrow.fs.FileSystem.from_uri(url) if remote else (pyarrow.fs.LocalFileSystem(), url)
    counts.update(compare(read_results(filesystem, f"{path}/{JOB}"), expected, LABELS))
    return counts


def assert_started(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait for the child's first line. Raises SystemExit with its log if there is none."""
    line = process.stdout.readline() if process.stdout else ""
    if "started" not in line:
        process.kill()
        raise SystemExit(f"the driver did not start: {line}\n{_tail(folder)}")


async def child(store: str, source: str, seed: int) -> None:
    """The driver: submit the job, or go on with it, until it is completed; meanwhile replicas die and join."""
    from benchmarks.simulated import SimulatedPool
    from serve_app.driver.jobs.job import make_dispatcher
    from serve_app.driver.jobs.registry import Jobs
    from serve_app.settings import DriverSettings, SimulatedSettings
    from serve_app.spec import JobSpec

    rng = random.Random(seed)
    settings = DriverSettings(
        store=store, min_rows_per_replica=1, chunk_rows=16, window_rows=32, commit_seconds=0.05, commit_rows=100
    )
    pool = SimulatedPool(["a", "b", "c"], SimulatedSettings(step_ms=5, prefill_ms_per_token=0.05))
    async with make_dispatcher(pool, settings) as dispatcher:
        jobs = Jobs(settings, dispatcher)
        print("started", flush=True)
        if JOB not in await jobs.recover():
            await begin(jobs, JobSpec(source=source, prompt=PROMPT, labels=LABELS, workload="chaos/v1", job_id=JOB))
        while jobs.running():
            await asyncio.sleep(rng.uniform(0.02, 0.4))
            victim = rng.choice("abc")
            if victim in pool.engines and len(pool.engines) > 1 and rng.random() < 0.5:
                await pool.kill(victim)
                print("killed", victim, flush=True)
            elif victim not in pool.engines:
                pool.join(victim)
        status = await jobs.status(JOB)
        print(status.model_dump_json(), flush=True)
        sys.exit(0 if status.state == "completed" else 3)


async def begin(jobs: Any, spec: Any) -> None:
    """Submit the job unless it is there; where the store is away, again, as whoever submits would."""
    from serve_app.errors import JobConflict, JobNotFound, StoreError

    while True:
        try:
            await jobs.status(JOB)
            return
        except JobNotFound:
            with suppress(JobConflict):  # the first try had been taken after all
                await jobs.submit(spec)
            return
        except StoreError as error:
            print(error, file=sys.stderr)
            await asyncio.sleep(0.2)


def _answer(prompt: str) -> dict[str, float]:
    """What `engine/simulated/` answers: the labels' log-probabilities from a hash of the prompt's tokens."""
    digest = hashlib.sha256(prompt.encode("utf-32-be")).digest()
    weights = [1 + digest[i % len(digest)] for i in range(len(LABELS))]
    return {label: math.log(0.9 * w / sum(weights)) for label, w in zip(LABELS, weights, strict=True)}


# --- real vLLM ---


def real_runs(folder: Path, rng: random.Random, runs: int) -> Any:
    """Jobs on one cluster from config.yaml; yields each one's counts."""
    import yaml

    from serve_app.client.populations import PopulationClient
    from serve_app.serving.launch.local import local_serve
    from serve_app.spec import JobSpec, JobState
    from serve_app.workloads.ctr.asking.prompts import NO, WORKLOAD, YES, render_rows
    from serve_app.workloads.ctr.people.profiles import generate_profiles

    folder.mkdir(parents=True)
    document = yaml.safe_load(Path("config.yaml").read_text())
    document["http_options"]["port"] = 8766
    del document["applications"][2:]  # files and batches
    document["applications"][1]["args"].update(store=str(folder / "runs"), chunk_rows=16)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    with local_serve(config, log=folder / "serve.log", on_wait=console.print) as base_url:
        client = PopulationClient(base_url)
        for number in range(runs):
            rows = render_rows(generate_profiles(500, seed=number), f"Ad number {number}", "facebook")
            job_id = client.submit(JobSpec.of(rows, workload=WORKLOAD, labels=[YES, NO], job_id=f"real-{number}"))
            counts: Counter[str] = Counter(rows=len(rows))
            while client.status(job_id).ok == 0:
                time.sleep(0.2)
            for kind in rng.sample(["Driver", "Replica"], 2):
                time.sleep(rng.uniform(0.5, 5.0))
                os.kill(rng.choice(actors(kind)), signal.SIGKILL)
                counts[f"{kind.lower()}_kills"] += 1
            status = client.wait(job_id)
            if status.state is not JobState.COMPLETED:
                raise SystemExit(f"real run {number} ended {status.state}: {status.message}")
            found = read_results(pyarrow.fs.LocalFileSystem(), str(folder / "runs" / job_id))
            counts.update(compare(found, {row.custom_id: None for row in rows}, (YES, NO)))
            yield counts


def actors(kind: str) -> list[int]:
    """Processes of a Serve deployment's replicas, by their titles."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith("ray::ServeReplica") and f":{kind}" in title:
                found.append(process.pid)
    return found


def _tail(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("child-*.log"))[-1:])


if __name__ == "__main__":
    main()
