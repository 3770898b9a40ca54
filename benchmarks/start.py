"""How long a start takes, and what a server that has nothing to do takes: `python -m benchmarks.start --json FILE`.

`start_ratio_vs_vllm_serve` is the time from the command to the first generated token of one replica under Ray Serve,
by its HTTP route, over that of `vllm serve` with the same engine settings: in turns, after a start of each that is not
counted, the median over passes of each side. Both stop before the other starts. `two_replicas_start_s` is the same of
config.yaml as it is, until both replicas can work. `timeline` says where one start of that went, and `setup` what
`make setup` took when it last installed something (`.venv/setup.json`); `--setup` measures that too, in a clean clone.

`idle_cores` is the processor time that all processes of the two replicas' server take, Ray's own among them, while
nobody asks anything, over `IDLE_S` seconds: 1 is one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.common import console, in_turn, machine, publish
from benchmarks.driver import ENGINE, write_config
from benchmarks.peers import ROOT, Case
from benchmarks.peers.vllm_serve import VllmServe, wait_for_answer
from serve_app.client.populations import PopulationClient
from serve_app.models.default import NAME, prepare
from serve_app.serving.launch.config import set_store
from serve_app.serving.launch.local import RUN_MARKER, local_serve, marked_processes, stages_line, start_stages

RATIO_AIM, IDLE_AIM = 1.3, 0.1
# After the last work, before idleness is measured: readers of vLLM's queues look for messages more often for a while.
CALM_S, IDLE_S = 15.0, 30.0
PEER_PORT = 8767


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--passes", type=int, default=3, help="of each side that count")
    parser.add_argument("--quick", action="store_true", help="one pass of each side, and none to warm up")
    parser.add_argument("--setup", action="store_true", help="also set up a clean clone (one to five minutes)")
    args = parser.parse_args()
    hardware = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = compare(folder, 1 if args.quick else args.passes, warm=not args.quick)
        two = two_replicas(folder)
        setup = set_up_clone(folder) if args.setup else read_setup(ROOT)
    report(seconds, two, setup, hardware, args.json)


def compare(folder: Path, passes: int, *, warm: bool) -> dict[str, list[float]]:
    """Seconds of each side's counted starts."""
    seconds: dict[str, list[float]] = {"ours": [], "vllm_serve": []}
    start = {"ours": start_ours, "vllm_serve": start_vllm_serve}
    for number in range(-warm, passes):
        for side in in_turn(seconds, number):
            took = start[side](folder)
            console.print(f"{'warm-up' if number < 0 else f'pass {number + 1}'}, {side}: {took:.1f} s")
            if number >= 0:
                seconds[side].append(took)
    return seconds


def start_ours(folder: Path) -> float:
    """Seconds until one replica has answered a chat with a token."""
    config = write_config(folder)
    began = time.monotonic()
    with local_serve(config, log=folder / "ours.log") as base_url:
        wait_for_answer(base_url, NAME)
        return time.monotonic() - began


def start_vllm_serve(folder: Path) -> float:
    """The same of `vllm serve`."""
    server = VllmServe(Case(str(prepare()), ENGINE, (), ()), port=PEER_PORT, log=folder / "vllm-serve.log")
    began = time.monotonic()
    try:
        server.start()
        return time.monotonic() - began
    finally:
        server.stop()


def two_replicas(folder: Path) -> dict[str, Any]:
    """The start of config.yaml, where its time went, and what it takes idle."""
    document = yaml.safe_load((ROOT / "config.yaml").read_text())
    document["http_options"]["port"] = PEER_PORT
    set_store(document, str(folder / "runs"))
    config, log = folder / "two.yaml", folder / "two.log"
    config.write_text(yaml.safe_dump(document))
    began = time.monotonic()
    with local_serve(config, log=log) as base_url:
        start_s = time.monotonic() - began
        console.print(f"two replicas: {start_s:.1f} s")
        pid = PopulationClient(base_url).replicas()[0].pid
        time.sleep(CALM_S)
        idle = idle_cores(psutil.Process(pid).environ()[RUN_MARKER])
    return {"start_s": start_s, "timeline": start_stages(log), "idle": idle}


def idle_cores(marker: str) -> dict[str, float]:
    """Cores that each kind of process of a server takes, the largest first."""

    def used() -> dict[int, tuple[str, float]]:
        found = {}
        for process in marked_processes(marker):
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = (kind(process), times.user + times.system)
        return found

    before, began = used(), time.monotonic()
    time.sleep(IDLE_S)
    after, lasted = used(), time.monotonic() - began
    cores: Counter[str] = Counter()
    for pid, (name, seconds) in after.items():
        cores[name] += (seconds - before.get(pid, (name, 0.0))[1]) / lasted  # type: ignore[assignment]
    return {name: round(share, 4) for name, share in cores.most_common()}


def kind(process: psutil.Process) -> str:
    """What a process is, for people: a title that Ray or vLLM gave it, or its program."""
    words = process.cmdline()
    first = Path(words[0].split()[0]).name if words and words[0].split() else process.name()
    if words and words[0].startswith(("ray::", "VLLM::")):
        return words[0].split("(")[0].strip()
    scripts = [Path(word).stem for word in words[1:] if word.endswith(".py")]
    if "forkserver" in " ".join(words):
        return "forked from vLLM's importer"
    return scripts[0] if scripts else first


def read_setup(root: Path) -> dict[str, Any]:
    """What set-up took; empty where it left nothing."""
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((root / ".venv/setup.json").read_text())
        return found
    return {}


def set_up_clone(folder: Path) -> dict[str, Any]:
    """What `make setup` takes in a clean clone of this repository's last commit; packages may be in a cache."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    try:
        subprocess.run(["make", "setup"], cwd=clone, check=True, stdout=sys.stderr)
        return read_setup(clone)
    finally:
        shutil.rmtree(clone, ignore_errors=True)


def report(
    seconds: dict[str, list[float]],
    two: dict[str, Any],
    setup: dict[str, Any],
    hardware: dict[str, Any],
    path: Path | None,
) -> None:
    """Print the table and the JSON line."""
    ours, peer = (statistics.median(seconds[side]) for side in ("ours", "vllm_serve"))
    result = {
        "start_ratio_vs_vllm_serve": round(ours / peer, 3),
        "start_s": round(ours, 1),
        "vllm_serve_start_s": round(peer, 1),
        "two_replicas_start_s": round(two["start_s"], 1),
        "idle_cores": round(sum(two["idle"].values()), 3),
        **{name: setup.get(name) for name in ("setup_s", "packages_s", "bytecode_s", "model_s", "installer")},
        "timeline": two["timeline"],
        "idle_cores_by_process": two["idle"],
        "starts_s": {side: [round(one, 1) for one in values] for side, values in seconds.items()},
        **hardware,
    }
    lines = [
        ["one replica until its first token", f"{ours:.1f} s", ""],
        ["`vllm serve` until its first token", f"{peer:.1f} s", ""],
        ["start_ratio_vs_vllm_serve", f"{ours / peer:.2f}", f"≤ {RATIO_AIM}"],
        ["two_replicas_start_s", f"{two['start_s']:.1f} s", ""],
        ["… finished after", stages_line(two["timeline"]), ""],
        ["idle_cores", f"{result['idle_cores']:.2f}", f"≤ {IDLE_AIM}"],
        ["setup_s", f"{setup.get('setup_s', 'not known')} ({setup.get('installer', '')})", ""],
    ]
    publish(
        f"starting ({hardware['dtype']}, {hardware['gflops']} GFLOP/s)", ["", "measured", "aim"], lines, result, path
    )


if __name__ == "__main__":
    main()
