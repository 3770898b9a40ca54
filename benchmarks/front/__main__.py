"""Front ends compared, with an engine that is nearly free: `python -m benchmarks.front --json FILE`.

One replica on our defaults and its peers answer, in turns within one run, 64 one-token chats at a time and 64 streams
of 32 tokens at a time (from `vllm bench serve`), then 2,000 rows scored and 512 rows answered by 32 tokens. A ratio is
our rate over the peer's in the same pass; the median over passes is reported, after one pass to warm up. Sides are
frozen but while they are measured. `--ingress proxy,haproxy` measures us behind each of these too.

`client_req_per_s` and `client_tok_per_s` are what the load generator reaches at a server that does nothing: a rate near
it would be the client's. Processor time is by kind of process, per chat.

`population_share_beside_online` is from a **simulated** engine (`benchmarks.front.sharing`).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import console, in_turn, machine
from benchmarks.front.client import VllmBench
from benchmarks.front.loads import CONCURRENCY, QUICK, STREAM_TOKENS, Size, ask_chats, ask_rows
from benchmarks.front.report import report
from benchmarks.front.sides import CHAT_PEERS, INGRESSES, OURS, ROW_PEERS, Measured, ours_of, side_makers
from benchmarks.front.tiny import write_tiny_model
from benchmarks.load import Figures
from benchmarks.peers.fleet import Fleet
from benchmarks.peers.vllm_serve import wait_for_answer
from serve_app.dispatch.render import TokenRenderer
from serve_app.errors import ServeAppError
from serve_app.workloads.ctr.asking.prompts import NO, YES

SHARING = "sharing"
PEERS = (*CHAT_PEERS, *ROW_PEERS, SHARING)
NULL_PORT = 8769
# Shown as they come.
RATES = ("req_req_per_s", "stream_tok_per_s", "score_rows_per_s", "generate_tok_per_s")

Pass = dict[str, Figures]


def main() -> None:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # what is frozen must not be left
    hardware = machine()
    size = (QUICK if args.quick else Size())._replace(**({"passes": args.passes} if args.passes else {}))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = write_tiny_model(folder / "model")
        client = VllmBench(log=folder / "client.log")
        stack.callback(client.stop)
        client.start()
        limit = null_rates(client, size)
        label_ids = TokenRenderer(str(model)).label_ids((YES, NO))
        makers = side_makers(folder, model, (YES, NO), label_ids, rows=size.scored, ingresses=args.ingress)
        fleet = stack.enter_context(Fleet(makers, [OURS]))
        ours = ours_of(args.ingress)

        def measure(peers: Sequence[str], ask: Callable[[Measured, int], Figures]) -> list[Pass]:
            chosen = [peer for peer in peers if peer in args.peers]
            return passes(fleet.having([*ours, *chosen]), ask, size.passes) if chosen else []

        chats = measure(CHAT_PEERS, lambda side, number: ask_chats(side, client, f"{number}", size))
        rows = measure(ROW_PEERS, lambda side, number: ask_rows(side, number, size))
        shared = sharing(folder / "sharing.json", quick=args.quick) if SHARING in args.peers else {}
    report(chats, rows, ours, shared, {**limit, "size": size._asdict(), **hardware}, args.json)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--passes", type=int, default=0, help="that count (default: 5)")
    parser.add_argument("--quick", action="store_true", help="2 passes of smaller loads")
    parser.add_argument(
        "--peers", type=in_names(PEERS), default=PEERS, help="only these, by comma: " + ", ".join(PEERS)
    )
    parser.add_argument("--ingress", type=in_names(INGRESSES), default=[], help="ours behind these too: proxy,haproxy")
    return parser.parse_args()


def in_names(known: Sequence[str] | Mapping[str, Any]) -> Callable[[str], list[str]]:
    """Reads names by comma."""

    def read(text: str) -> list[str]:
        named = [name for name in text.split(",") if name]
        if unknown := [name for name in named if name not in known]:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
        return named

    return read


def null_rates(client: VllmBench, size: Size) -> Figures:
    """What the client reaches at a server that does nothing."""
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.front.null_server", str(NULL_PORT)])
    try:
        url = f"http://127.0.0.1:{NULL_PORT}"
        wait_for_answer(url, "model")
        loads = ((size.chats, 1), (size.streams, STREAM_TOKENS))
        one, many = (client.ask(url, "model", "null", count, tokens, CONCURRENCY) for count, tokens in loads)
        return {"client_req_per_s": one["req_per_s"], "client_tok_per_s": many["tok_per_s"]}
    finally:
        server.terminate()
        server.wait()


def sharing(path: Path, *, quick: bool) -> dict[str, Any]:
    """Figures of `benchmarks.front.sharing`, which are simulated; none where it fails."""
    console.print("online requests beside a population, simulated")
    command = [sys.executable, "-m", "benchmarks.front.sharing", "--json", str(path), "--requests"]
    done = subprocess.run([*command, "200" if quick else "800"], capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(f"the simulation is left out: {done.stderr[-500:]}", markup=False)
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def passes(sides: Mapping[str, Measured], ask: Callable[[Measured, int], Figures], count: int) -> list[Pass]:
    """Each side's figures in each pass, after one to warm up; one that fails is not in that pass."""
    found: list[Pass] = []
    if len(sides) < 2:
        return found
    for number in range(count + 1):
        one: Pass = {}
        for place, name in enumerate(in_turn(sides, number)):
            try:
                one[name] = ask(sides[name], len(sides) * number + place)
            except ServeAppError as error:
                console.print(f"pass {number} is without {name}: {error}", markup=False)
        rates = {name: [f"{value:.0f}" for key, value in side.items() if key in RATES] for name, side in one.items()}
        console.print(f"pass {number}: " + ", ".join(f"{name} {' / '.join(shown)}" for name, shown in rates.items()))
        found.append(one)
    return found[1:]


if __name__ == "__main__":
    main()
