"""The comparison's table and JSON line: ratios, processor time, and what could not be measured, with its reason."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.common import console, publish
from benchmarks.front.sides import OURS
from benchmarks.front.tiny import ENGINE
from benchmarks.ingress import figure_line
from benchmarks.load import Figures

Passes = Sequence[Mapping[str, Figures]]
# What is shown of each side.
COLUMNS = {
    "one-token chats/s": "req_req_per_s",
    "streamed tok/s": "stream_tok_per_s",
    "rows scored/s": "score_rows_per_s",
    "rows × 32 tok/s": "generate_tok_per_s",
    "TTFT p99 ms, 64 streams": "stream_ttft_p99_ms",
    "ITL p50 ms": "stream_itl_p50_ms",
}
REPLICA, PROXIES = "ray::ServeReplica:replicas", ("proxy", "haproxy")
# The rate of the load generator at a server that does nothing, by the rate that it bounds.
CLIENT = {"req_req_per_s": "client_req_per_s", "stream_tok_per_s": "client_tok_per_s"}
NO_PREFIX_ROUTING = "requests go to the replica with the fewest: there is no routing by prefix to compare"


class Ratio(NamedTuple):
    """Our rate `key` over a peer's, and the aim."""

    name: str
    peer: str
    key: str
    aim: float


RATIOS = (
    Ratio("req_ratio_vs_vllm_serve", "vllm_serve", "req_req_per_s", 0.9),
    Ratio("stream_tok_ratio_vs_vllm_serve", "vllm_serve", "stream_tok_per_s", 0.95),
    Ratio("req_ratio_vs_ray_serve_llm", "ray_serve_llm", "req_req_per_s", 2.5),
    Ratio("stream_tok_ratio_vs_ray_serve_llm", "ray_serve_llm", "stream_tok_per_s", 2.5),
    Ratio("req_ratio_vs_ray_serve_llm_direct", "ray_serve_llm_direct", "req_req_per_s", 1.0),
    Ratio("stream_tok_ratio_vs_ray_serve_llm_direct", "ray_serve_llm_direct", "stream_tok_per_s", 1.0),
    Ratio("driver_score_vs_offline", "offline", "score_rows_per_s", 1.1),
    Ratio("driver_generate_vs_offline", "offline", "generate_tok_per_s", 0.95),
    Ratio("driver_vs_run_batch", "run_batch", "score_rows_per_s", 2.5),
    Ratio("driver_vs_ray_data", "ray_data", "score_rows_per_s", 1.5),
)


def report(
    chats: Passes, rows: Passes, ours: Sequence[str], shared: dict[str, Any], others: dict[str, Any], path: Path | None
) -> None:
    """Print and save."""
    result: dict[str, Any] = {"missing": {}}
    lines = []
    measured = [*chats, *rows]
    for side in ours:
        suffix = side.removeprefix(OURS)
        for ratio in RATIOS:
            both = [one for one in measured if ratio.key in one.get(side, {}) and ratio.key in one.get(ratio.peer, {})]
            if both:
                values = [one[side][ratio.key] / one[ratio.peer][ratio.key] for one in both]
                lines.append(figure_line(result, ratio.name + suffix, values, f"≥ {ratio.aim}"))
            else:
                result[ratio.name + suffix] = None
                result["missing"][ratio.name + suffix] = f"{ratio.peer} was not measured: see what was printed"
        cpu = cpu_ms(chats, side)
        for name, value in (
            ("replica_cpu_ms_per_request", sum(ms for kind, ms in cpu.items() if kind.startswith(REPLICA))),
            ("proxy_cpu_ms_per_request", sum(ms for kind, ms in cpu.items() if is_proxy(kind))),
        ):
            result[name + suffix] = round(value, 2) if cpu else None
            lines.append([name + suffix, f"{value:.1f}", "", ""])
        result[f"cpu_ms_per_request_by_process{suffix}"] = cpu
    rates = [(key, one[key]) for passed in chats for one in passed.values() for key in CLIENT if key in one]
    headroom = min((others[CLIENT[key]] / rate for key, rate in rates if CLIENT[key] in others), default=None)
    result["client_headroom"] = headroom and round(headroom, 2)
    if headroom:
        lines.append(["client_headroom", f"{headroom:.1f}", "", "well above 1"])
    else:
        result["missing"]["client_headroom"] = "no chats were asked"
    result["prefix_hit_gain"] = None
    result["missing"]["prefix_hit_gain"] = NO_PREFIX_ROUTING
    for name, aim in (("population_share_beside_online", "≥ 0.6"), ("online_p99_ttft_with_population_ratio", "≤ 1.2")):
        result[name] = shared.get(name)
        if shared:
            lines.append([f"{name} (SIMULATED)", f"{shared[name]:.2f}", "", aim])
        else:
            result["missing"][name] = "the simulation was left out"
    result["sharing"] = shared
    for title, passes in (("chats", chats), ("rows", rows)):
        console.print(sides_table(f"{title}: medians of {len(passes)} passes", passes))
    result |= {"chats": list(chats), "rows": list(rows), "engine": ENGINE, **others}
    publish("front ends with an engine that is nearly free", ["", "median", "passes", "aim"], lines, result, path)


def cpu_ms(passes: Passes, side: str) -> dict[str, float]:
    """Milliseconds of processor time of a one-token chat by kind of process, medians, the largest first."""
    prefix = "req_cpu_ms."
    found = [one[side] for one in passes if side in one]
    kinds = {key for one in found for key in one if key.startswith(prefix)}
    medians = {key.removeprefix(prefix): statistics.median(one.get(key, 0.0) for one in found) for key in kinds}
    return {kind: round(ms, 3) for kind, ms in sorted(medians.items(), key=lambda item: -item[1]) if ms >= 0.01}


def is_proxy(kind: str) -> bool:
    return any(name in kind.lower() for name in PROXIES)


def sides_table(title: str, passes: Passes) -> Table:
    table = Table(title=title, title_justify="left")
    columns = {
        name: key for name, key in COLUMNS.items() if any(key in side for one in passes for side in one.values())
    }
    for column in ("", *columns):
        table.add_column(column)
    for name in dict.fromkeys(side for one in passes for side in one):
        found = [one[name] for one in passes if name in one]
        values = [[one[key] for one in found if key in one] for key in columns.values()]
        table.add_row(name, *(f"{statistics.median(value):.4g}" if value else "" for value in values))
    return table
