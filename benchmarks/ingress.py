"""Our HTTP ingress against `vllm serve` and ray.serve.llm: one engine at TP=2 on the same cores, in turns in one run.

Ours is one replica, behind HAProxy, which is the default, and behind Serve's own proxy. Each side answers the same
kinds of load in each pass: one-token requests at 64 concurrent, streams at 64 concurrent, and streams at 2 concurrent.
Prompts are of one length and of texts that no other pass has, so only the shared system prompt is cached. Sides are
started one by one and frozen but when measured; their order rotates from pass to pass, and the first pass is warm-up.
A ratio is ours over the peer's in the same pass; the median over passes is reported.

There are two rounds, as no more than three engines and three Ray clusters fit into 16 GiB; our side behind HAProxy is
in both. Between them, a steady low online load is put on it with and without a population job, in turns.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.common import console, in_turn, machine, publish
from benchmarks.driver import ENGINE, people, write_config
from benchmarks.load import Figures, Load, Result, good, prompts, run, stream_figures
from benchmarks.peers import Case
from benchmarks.peers.fleet import Fleet, Ours, Side, awake
from benchmarks.peers.ray_serve_llm import RayServeLlm
from benchmarks.peers.vllm_serve import VllmServe
from serve_app.client.populations import PopulationClient
from serve_app.errors import ServeAppError
from serve_app.models.default import NAME, prepare
from serve_app.serving.haproxy.environment import INGRESS
from serve_app.spec import JobSpec, JobStatus
from serve_app.workloads.ctr.asking.prompts import NO, WORKLOAD, YES

OURS = "haproxy"
ROUNDS = ((OURS, "proxy", "vllm_serve"), (OURS, "ray_serve_llm", "ray_serve_llm_direct"))
POPULATION = "population"
PEERS = ("proxy", "vllm_serve", "ray_serve_llm", "ray_serve_llm_direct", POPULATION)
# Not in a quick run: what Ray's guide to high throughput asks for, and its documentation calls experimental.
SLOW = ("ray_serve_llm_direct",)
PORTS = {name: 8765 + number for number, name in enumerate((OURS, *PEERS[:-1]))}
HAPROXY, PROXY = {INGRESS: "1"}, {INGRESS: "0"}

CONCURRENCY, LOW_CONCURRENCY = 64, 2
STREAM_TOKENS, LOW_TOKENS = 32, 16
ONLINE_REQUESTS_PER_S = 2.0
# More than a replica answers while the online load lasts.
POPULATION_ROWS = 4000
# The job is under way: its window of open rows has filled the engine.
POPULATION_WARM_ROWS = 128
# After a job is cancelled, its chunks are aborted in the engine.
DRAIN_S = 5.0
POLL_S = 0.5


class Size(NamedTuple):
    """How much is asked: passes after the warm-up, and requests of each kind of load in a pass."""

    passes: int
    requests: int
    streams: int
    low: int
    online: int


QUICK, FULL = Size(3, 192, 128, 24, 50), Size(5, 256, 192, 32, 80)


class Figure(NamedTuple):
    """One side's figure compared with a peer's."""

    name: str
    ours: str
    peer: str
    key: str
    aim: str = ""

    def compare(self, one: Mapping[str, Figures]) -> float:
        """Ours over the peer's; where the name ends in `_ms`, ours less the peer's."""
        ours, peer = one[self.ours][self.key], one[self.peer][self.key]
        return ours - peer if self.name.endswith("_ms") else ours / peer


FIGURES = (
    Figure("req_ratio_vs_vllm_serve", OURS, "vllm_serve", "req_per_s", "≥ 1.0"),
    Figure("ttft_p50_added_ms", OURS, "vllm_serve", "low_ttft_p50_ms"),
    Figure("itl_p99_ratio", OURS, "vllm_serve", "itl_p99_ms"),
    Figure("stream_tok_ratio_vs_vllm_serve", OURS, "vllm_serve", "tok_per_s", "≥ 0.95"),
    Figure("stream_tok_ratio_vs_ray_serve_llm", OURS, "ray_serve_llm", "tok_per_s", "≥ 2.5"),
    Figure("stream_tok_ratio_vs_ray_serve_llm_direct", OURS, "ray_serve_llm_direct", "tok_per_s"),
    Figure("req_ratio_vs_ray_serve_llm", OURS, "ray_serve_llm", "req_per_s"),
    Figure("haproxy_vs_proxy", OURS, "proxy", "tok_per_s"),
    Figure("haproxy_req_ratio_vs_proxy", OURS, "proxy", "req_per_s"),
    Figure("proxy_req_ratio_vs_vllm_serve", "proxy", "vllm_serve", "req_per_s"),
    Figure("proxy_ttft_p50_added_ms", "proxy", "vllm_serve", "low_ttft_p50_ms"),
    Figure("proxy_stream_tok_ratio_vs_vllm_serve", "proxy", "vllm_serve", "tok_per_s"),
)
ONLINE_FIGURE = "online_p99_ttft_with_population_ratio"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--quick", action="store_true", help=f"3 passes instead of 5, fewer requests, no {SLOW[0]}")
    parser.add_argument("--peers", default="", help="only these, by comma: " + ", ".join(PEERS))
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    try:
        wanted = chosen(args.peers, quick=args.quick)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # what is frozen must not be left
    hardware = machine()
    rounds: list[list[dict[str, Figures]]] = []
    online: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder, Fleet(side_makers(Path(folder)), [OURS]) as fleet:
        for number, names in enumerate(ROUNDS):
            if len(among := [name for name in names if name in wanted]) > 1:
                sides = fleet.having(among)
                rounds.append([one_pass(f"{number}.{i}", i, sides, size) for i in range(size.passes + 1)][1:])
            if number == 0 and POPULATION in wanted:
                try:
                    online = online_passes(fleet.having([OURS])[OURS], size)
                except ServeAppError as error:  # what was measured before is told
                    console.print(f"{POPULATION} is left out: {error}", markup=False)
    report(rounds, online, {"engine": {"model": NAME, **ENGINE}, **size._asdict(), **hardware}, args.json)


def chosen(peers: str, *, quick: bool) -> set[str]:
    """The sides to measure: those named by comma, or all, and ours. Raises ValueError for a name that is none."""
    named = {name for name in peers.split(",") if name}
    if unknown := named - set(PEERS):
        raise ValueError(f"--peers: there is no {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    return {OURS} | (named or set(PEERS) - (set(SLOW) if quick else set()))


# --- sides ---


def side_makers(folder: Path) -> dict[str, Callable[[], Side]]:
    """How each side is made, by name; all have the same engine."""
    case = Case(str(prepare()), ENGINE, (), ())

    def log(name: str) -> dict[str, Any]:
        return {"port": PORTS[name], "log": folder / f"{name}.log"}

    def ours(name: str, env: dict[str, str]) -> Ours:
        (folder / name).mkdir()
        config = write_config(folder / name, standby=True, port=PORTS[name])
        return Ours(config, model=NAME, env=env)

    return {
        OURS: lambda: ours(OURS, HAPROXY),
        "proxy": lambda: ours("proxy", PROXY),
        "vllm_serve": lambda: VllmServe(case, **log("vllm_serve")),
        "ray_serve_llm": lambda: RayServeLlm(case, **log("ray_serve_llm")),
        "ray_serve_llm_direct": lambda: RayServeLlm(case, **log("ray_serve_llm_direct"), direct=True),
    }


# --- measuring ---


def one_pass(label: str, number: int, sides: Mapping[str, Side], size: Size) -> dict[str, Figures]:
    """All sides, one after the other, beginning with another one in each pass; one that fails is not in its result."""
    result = {}
    for name in in_turn(sides, number):
        try:
            with awake(sides[name]):
                result[name] = measure(sides[name], f"{label}.{name}", size)
        except ServeAppError as error:
            console.print(f"pass {label} is without {name}: {error}", markup=False)
            continue
        if failed := result[name]["failed"]:
            console.print(f"[red]{name}: {failed:.0f} requests failed[/red]")
    shown = ", ".join(f"{name} {one['req_per_s']:.1f} / {one['tok_per_s']:.0f}" for name, one in result.items())
    console.print(f"pass {label}, requests/s / streamed tokens/s: {shown}")
    return result


def measure(side: Side, seed: str, size: Size) -> Figures:
    """The side's figures. Raises ServeAppError when it answers nothing."""

    def load(kind: str, count: int, concurrency: int, max_tokens: int) -> Result:
        texts = prompts(count, f"{seed}.{kind}")
        asked = Load(side.base_url, side.model, texts, max_tokens, max_tokens > 1, concurrency=concurrency)
        return run(asked)

    load("warm", LOW_CONCURRENCY, LOW_CONCURRENCY, LOW_TOKENS)
    requests = load("requests", size.requests, CONCURRENCY, 1)
    streams = load("streams", size.streams, CONCURRENCY, STREAM_TOKENS)
    low = load("low", size.low, LOW_CONCURRENCY, LOW_TOKENS)
    return {
        "req_per_s": len(good(requests)) / requests.wall_s,
        **stream_figures(streams),
        **{f"low_{name}": value for name, value in stream_figures(low).items()},
        "request_client_cores": requests.cpu_s / requests.wall_s,
        "failed": float(sum(bool(one.error) for result in (requests, streams, low) for one in result.answers)),
    }


# --- online traffic beside a population ---


def online_passes(side: Side, size: Size) -> list[Figures]:
    """A steady low load with and without a population job on the same replica, the other one first in each pass."""
    passes = []
    client = PopulationClient(side.base_url)
    with awake(side):
        for number in range(size.passes):
            one: Figures = {}
            for busy in (False, True) if number % 2 else (True, False):
                texts = prompts(size.online, f"online.{number}.{busy}")
                load = Load(side.base_url, side.model, texts, LOW_TOKENS, True, request_rate=ONLINE_REQUESTS_PER_S)
                if busy:
                    result, one["population_rows_per_s"] = beside_population(client, load, number)
                else:
                    result = run(load)
                name = "with" if busy else "without"
                one |= {f"{name}_{key}": value for key, value in stream_figures(result).items()}
                one[f"{name}_failed"] = float(sum(bool(answer.error) for answer in result.answers))
            passes.append(one)
            shown = ", ".join(f"{name} {one[f'{name}_ttft_p99_ms']:.0f}" for name in ("without", "with"))
            console.print(f"pass {number}, online p99 TTFT in ms beside a population: {shown}")
    return passes


def beside_population(client: PopulationClient, load: Load, number: int) -> tuple[Result, float]:
    """The load's result while a job of rows that are nowhere else runs, and the job's rows/s meanwhile.

    Raises ServeAppError when the job does not last as long as the load.
    """
    rows = people(9000 + number, POPULATION_ROWS)
    job_id = client.submit(JobSpec.of(rows, workload=WORKLOAD, labels=[YES, NO]))
    while (before := running(client, job_id)).ok < POPULATION_WARM_ROWS:
        time.sleep(POLL_S)
    started = time.perf_counter()
    result = run(load)
    rows_done = running(client, job_id).ok - before.ok
    rows_per_s = rows_done / (time.perf_counter() - started)
    client.cancel(job_id)
    time.sleep(DRAIN_S)
    return result, rows_per_s


def running(client: PopulationClient, job_id: str) -> JobStatus:
    """The job's status. Raises ServeAppError when it has ended."""
    status = client.status(job_id)
    if not status.state.active:
        raise ServeAppError(f"void: the population ended ({status.state} {status.message}) while it was needed")
    return status


# --- telling ---


def report(
    rounds: Sequence[Sequence[Mapping[str, Figures]]],
    online: Sequence[Figures],
    others: dict[str, Any],
    path: Path | None,
) -> None:
    """Print and save."""
    result: dict[str, Any] = {}
    lines = []
    for figure in FIGURES:
        for passes in rounds:
            if values := [figure.compare(one) for one in passes if {figure.ours, figure.peer} <= one.keys()]:
                lines.append(figure_line(result, figure.name, values, figure.aim))
    if online:
        ratios = [one["with_ttft_p99_ms"] / one["without_ttft_p99_ms"] for one in online]
        lines.append(figure_line(result, ONLINE_FIGURE, ratios, "≤ 1.2"))
    for number, passes in enumerate(rounds):
        console.print(sides_table(f"round {number + 1}: medians of {len(passes)} passes", passes))
    loads = {"concurrency": CONCURRENCY, "low_concurrency": LOW_CONCURRENCY, "stream_tokens": STREAM_TOKENS}
    result |= {"ours": OURS, "rounds": rounds, "online_passes": online, **loads, **others}
    title = f"our ingress and its peers ({others['gflops']} GFLOP/s {others['dtype']})"
    publish(title, ["", "median", "passes", "aim"], lines, result, path)


def figure_line(result: dict[str, Any], name: str, values: Sequence[float], aim: str) -> list[str]:
    """A figure's line of the table; its median and its passes are put into `result`."""
    result[name] = round(statistics.median(values), 4)
    result[f"{name}_passes"] = [round(value, 4) for value in values]
    return [name, f"{result[name]:.2f}", f"{min(values):.2f}–{max(values):.2f}", aim]


def sides_table(title: str, passes: Sequence[Mapping[str, Figures]]) -> Table:
    """Each side's medians; the client's share of the machine stands beside them."""
    columns = {
        "requests/s": "req_per_s",
        "streamed tok/s": "tok_per_s",
        "ITL p50 ms": "itl_p50_ms",
        "ITL p99 ms": "itl_p99_ms",
        "TTFT p99 ms": "ttft_p99_ms",
        "TTFT p50 ms, 2 open": "low_ttft_p50_ms",
        "tokens a chunk": "tokens_per_chunk",
        "client's cores": "client_cores",
    }
    table = Table(title=title, title_justify="left")
    for column in ("", *columns):
        table.add_column(column)
    for name in dict.fromkeys(itertools.chain(*passes)):
        medians = [statistics.median(one[name][key] for one in passes if name in one) for key in columns.values()]
        table.add_row(name, *(f"{value:.4g}" for value in medians))
    return table


if __name__ == "__main__":
    main()
