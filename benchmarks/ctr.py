"""Click-through prediction against the flow that it replaces: `python -m benchmarks.ctr --json out.json [--quick]`.

Ours is `workloads.ctr.study.Study`, as `serve-app ctr predict` runs it: from submitting the job to having read every
answer. The peer sends 32 chat requests at a time to the same replica and waits for all of them: `batch32_flow`
generates JSON, as the original did, `batch32_flow_scored` asks for one token, as ours does. All in turns, on people
that nobody asked about before; the first pass is warm-up; the median over passes is reported. One replica at TP=2, as
there are two cores.

`roofline_share` is the share of the machine's measured matmul rate (all cores, in the engine's data type) that ours
turns into answers:

    operations = 2 · (parameters without embeddings · uncached prompt tokens + hidden · vocabulary · rows)

of the model as published: its padded heads are work, but not useful work. `label_swap_bias` is by how much the
probability of a click moves when the order of the options is swapped, before and after (`ctr/asking/bias.py`).
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.common import console, in_turn, machine, matmul_gflops, publish
from benchmarks.driver import ENGINE, write_config
from benchmarks.peers import Case
from benchmarks.peers.http32 import Http32
from serve_app.client.populations import PopulationClient
from serve_app.dispatch.render import TokenRenderer
from serve_app.models.default import NAME, prepare
from serve_app.serving.launch.local import local_serve
from serve_app.workloads.ctr.asking.bias import LabelBias
from serve_app.workloads.ctr.asking.frames import NO, YES
from serve_app.workloads.ctr.asking.prompts import WORKLOAD
from serve_app.workloads.ctr.study import Study

Figures = dict[str, Any]
AD = "New smartphone launch"
PEERS = {"batch32_flow": 5.0, "batch32_flow_scored": None}  # and the aim
ROOFLINE_AIM = 0.6
# Of the peers' rows, which take up to ten times as long: whole batches of 32.
PEER_SHARE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--quick", action="store_true", help="256 people and 3 passes instead of 512 and 5")
    args = parser.parse_args()
    people, passes = (256, 3) if args.quick else (512, 5)
    hardware = machine()
    with tempfile.TemporaryDirectory() as folder:
        config, log = write_config(Path(folder)), Path(folder) / "serve.log"
        with local_serve(config, log=log, on_wait=console.print) as base_url:
            sides = make_sides(base_url, people)
            measured = [one_pass(number, sides) for number in range(passes + 1)][1:]
            bias = swap_bias(base_url, people)
        # Again, beside the figure that it divides: such machines change pace within minutes.
        hardware["gflops_after"] = round(matmul_gflops(hardware["dtype"]), 1)
    report(measured, people, bias, hardware, args.json)


def make_sides(base_url: str, people: int) -> dict[str, Callable[[int], Figures]]:
    """What each side does in a pass, whose people have the seed that it is given."""
    client, model = PopulationClient(base_url), str(prepare())
    case = Case(model, ENGINE, (YES, NO), TokenRenderer(model).label_ids((YES, NO)))
    parameters, head = useful_parameters()

    def ours(seed: int) -> Figures:
        started = time.perf_counter()
        result = Study(ad=AD, size=people, seed=seed).run(client)
        wall_s = time.perf_counter() - started
        status = result.status
        uncached = status.prompt_tokens - status.cached_tokens
        return {
            "rows": people,
            "ok": status.ok,
            "wall_s": wall_s,
            "rows_per_s": people / wall_s,
            "engine_rows_per_s": people / status.run_s,
            "ctr": result.rates.ctr,
            "uncached_tokens_per_row": uncached / people,
            "gflops": 2 * (parameters * uncached + head * people) / wall_s / 1e9,
        }

    def peer(flow: Http32) -> Callable[[int], Figures]:
        flow.start()
        return lambda seed: flow.run(list(Study(ad=AD, size=people // PEER_SHARE, seed=seed).rows()))

    return {
        "ours": ours,
        "batch32_flow": peer(Http32(base_url, case, generate=True)),
        "batch32_flow_scored": peer(Http32(base_url, case, generate=False)),
    }


def useful_parameters() -> tuple[int, int]:
    """Parameters of the model as published, without its embedding, and of the head (here the embedding again)."""
    sizes: dict[str, int] = {}
    for file in prepare(padded=False).glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118  # no mapping
                sizes[name] = math.prod(weights.get_slice(name).get_shape())
    head = sizes.pop("model.embed_tokens.weight")
    return sum(sizes.values()), head


def one_pass(number: int, sides: dict[str, Callable[[int], Figures]]) -> dict[str, Figures]:
    """All sides, each on people of its own."""
    names = list(sides)
    found = {name: sides[name](10_000 * (1 + names.index(name)) + number) for name in in_turn(names, number)}
    for name, one in found.items():
        if one["ok"] != one["rows"]:
            console.print(f"[red]{name}: {one['ok']} of {one['rows']} rows answered[/red]")
    shown = ", ".join(f"{name} {one['rows_per_s']:.1f}" for name, one in found.items())
    console.print(f"pass {number}, rows/s: {shown}")
    return found


def swap_bias(base_url: str, people: int) -> LabelBias:
    """Of people who are asked in both orders and both wordings."""
    console.print("label swaps")
    bias = Study(ad=AD, size=people, seed=7, swap="words").run(PopulationClient(base_url)).label_bias
    assert bias is not None  # asked in both orders, and in both wordings
    assert bias.wording is not None
    return bias


def report(
    measured: list[dict[str, Figures]], people: int, bias: LabelBias, hardware: Figures, path: Path | None
) -> None:
    """Print and save."""

    def over_passes(value: Callable[[dict[str, Figures]], float]) -> tuple[float, list[float]]:
        values = [value(one) for one in measured]
        return round(statistics.median(values), 4), [round(one, 4) for one in values]

    rate = statistics.fmean([hardware["gflops"], hardware["gflops_after"]])
    figures: dict[str, tuple[float, list[float]]] = {"rows_per_s": over_passes(lambda one: one["ours"]["rows_per_s"])}
    for name in PEERS:
        figures[f"vs_{name}"] = over_passes(lambda one, name=name: one["ours"]["rows_per_s"] / one[name]["rows_per_s"])  # type: ignore[misc]
    figures["roofline_share"] = over_passes(lambda one: one["ours"]["gflops"] / rate)
    aims = {**{f"vs_{name}": aim for name, aim in PEERS.items()}, "roofline_share": ROOFLINE_AIM}
    lines = []
    result: Figures = {}
    for key, (median, each) in figures.items():
        result |= {key: median, f"{key}_passes": each}
        aim = aims.get(key)
        lines.append([key, f"{median:.2f}", f"{min(each):.2f} to {max(each):.2f}", "" if aim is None else f"{aim:g}"])
    for key, one in (("label_swap_bias", bias.position), ("label_word_bias", bias.wording)):
        assert one is not None
        result |= {f"{key}_before": round(one.before, 4), f"{key}_after": round(one.after, 4)}
        lines.append([key, f"{one.before:.3f} before, {one.after:.3f} after", "", ""])
    result |= {f"{name}_passes": [one[name] for one in measured] for name in measured[0]}
    result |= {"people_per_pass": people, "passes": len(measured), "workload": WORKLOAD, "bias_people": bias.people}
    result |= {"engine": {"model": NAME, **ENGINE}, "gflops_used": round(rate, 1), **hardware}
    title = f"click-through on one replica ({people} people a pass, {rate:.0f} GFLOP/s bf16)"
    publish(title, ["", "median", "passes", "aim"], lines, result, path)


if __name__ == "__main__":
    main()
