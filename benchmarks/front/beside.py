"""Online requests beside a population on a real engine: `python -m benchmarks.front.beside --json FILE`.

The default model at TP=2, one replica. First a population runs alone, then in each pass the same steady online load is
put on the replica with and without a population, the other one first in each pass. The figures are those of
`benchmarks.front.sharing`, with two differences: the load's requests come at even distances, and the time that it keeps
the engine busy alone is that in which a client waits for an answer, which is a little more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import console, machine, publish
from benchmarks.driver import ENGINE, people, write_config
from benchmarks.ingress import LOW_TOKENS, POPULATION_WARM_ROWS, beside_population, figure_line, running
from benchmarks.load import Answer, Figures, Load, prompts, run, stream_figures
from benchmarks.peers.vllm_serve import wait_for_answer
from serve_app.client.populations import PopulationClient
from serve_app.models.default import NAME
from serve_app.serving.launch.local import local_serve
from serve_app.spec import JobSpec
from serve_app.workloads.ctr.asking.prompts import NO, WORKLOAD, YES

# Steps are whole again so long after an online request, which the population alone waits for.
STANDBY_S = 20.0
ALONE_S, ALONE_ROWS = 15.0, 8000
# Of less left over, a share says nothing.
LEAST_LEFT = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--requests", type=int, default=40, help="online requests of a pass")
    parser.add_argument("--rate", type=float, default=0.5, help="online requests a second")
    args = parser.parse_args()
    hardware = machine()
    with tempfile.TemporaryDirectory() as name:
        config = with_standby(write_config(Path(name), standby=True))
        with local_serve(config, log=Path(name) / "serve.log", on_wait=console.print) as base_url:
            wait_for_answer(base_url, NAME)
            client = PopulationClient(base_url)
            alone = population_alone(client)
            passes = [one_pass(client, number, args.requests, args.rate) for number in range(args.passes)]
    others = {"population_alone_rows_per_s": alone, "rate": args.rate, "requests": args.requests}
    report(passes, alone, {**others, "engine": ENGINE, **hardware}, args.json)


def with_standby(config: Path) -> Path:
    document = yaml.safe_load(config.read_text())
    document["applications"][0]["args"]["sharing"] = {"standby_s": STANDBY_S}
    config.write_text(yaml.safe_dump(document))
    return config


def population_alone(client: PopulationClient) -> float:
    """Rows/s of a population while nobody else asks."""
    job_id = client.submit(JobSpec.of(people(8999, ALONE_ROWS), workload=WORKLOAD, labels=[YES, NO]))
    time.sleep(STANDBY_S)
    while running(client, job_id).ok < POPULATION_WARM_ROWS:
        time.sleep(0.5)
    before, started = running(client, job_id).ok, time.perf_counter()
    time.sleep(ALONE_S)
    rows_per_s = (running(client, job_id).ok - before) / (time.perf_counter() - started)
    client.cancel(job_id)
    time.sleep(STANDBY_S / 4)
    return rows_per_s


def one_pass(client: PopulationClient, number: int, requests: int, rate: float) -> Figures:
    one: Figures = {}
    for beside in (False, True) if number % 2 else (True, False):
        texts = prompts(requests, f"beside.{number}.{beside}")
        load = Load(client.base_url, NAME, texts, LOW_TOKENS, stream=True, request_rate=rate)
        if beside:
            result, one["population_rows_per_s"] = beside_population(client, load, number)
        else:
            result = run(load)
            one["busy_alone"] = open_share(result.answers, result.wall_s)
        name = "with" if beside else "without"
        one |= {f"{name}_{key}": value for key, value in stream_figures(result).items()}
    console.print(f"pass {number}: " + ", ".join(f"{key} {one[key]:.3g}" for key in SHOWN))
    return one


SHOWN = ("without_ttft_p99_ms", "with_ttft_p99_ms", "population_rows_per_s", "busy_alone")


def open_share(answers: Sequence[Answer], wall_s: float) -> float:
    """The share of the time in which a request was open."""
    total = until = 0.0
    for one in sorted(answers, key=lambda one: one.sent_s):
        total += max(0.0, one.done_s - max(one.sent_s, until))
        until = max(until, one.done_s)
    return total / wall_s


def report(passes: Sequence[Figures], alone: float, others: dict[str, Any], path: Path | None) -> None:
    result: dict[str, Any] = {"population_share_beside_online": None}
    lines = [["population alone, rows/s", f"{alone:.1f}", "", ""]]
    shares = [one["population_rows_per_s"] / (alone * (1 - one["busy_alone"])) for one in passes if leaves_some(one)]
    for name, values, aim in (
        ("online_p99_ttft_with_population_ratio", [ratio(one, "ttft_p99_ms") for one in passes], "≤ 1.2"),
        ("online_p50_ttft_with_population_ratio", [ratio(one, "ttft_p50_ms") for one in passes], ""),
        ("busy_alone", [one["busy_alone"] for one in passes], ""),
        ("population_share_beside_online", shares, "≥ 0.6"),
    ):
        if values:
            lines.append(figure_line(result, name, values, aim))
        else:
            console.print(f"{name} is left out: the online load left less than {LEAST_LEFT:.0%} over: lower --rate")
    pace = statistics.median(one["population_rows_per_s"] for one in passes)
    lines.append(["population beside, rows/s", f"{pace:.1f}", "", ""])
    title = f"online requests beside a population ({others['gflops']} GFLOP/s {others['dtype']})"
    publish(title, ["", "median", "passes", "aim"], lines, {**result, "passes": list(passes), **others}, path)


def leaves_some(one: Figures) -> bool:
    return 1 - one["busy_alone"] >= LEAST_LEFT


def ratio(one: Figures, key: str) -> float:
    return one[f"with_{key}"] / one[f"without_{key}"]


if __name__ == "__main__":
    main()
