"""Faults of every kind on the real stack, one in the middle of each population, with online requests beside it.

Real vLLM replicas at TP=2 behind Serve's proxy, the driver, the controller, and Ray's control store with Redis, on
three raylets of this host (`stack.py`). `faults.py` lists what is done. Afterwards every row must be in the store's
files once, with the value that it has without a fault (`benchmarks/chaos/exactly_once.py`), and no process or shared
memory may be left without its owner. A run takes a minute, as engines start slowly; with `--minutes` it stops early,
and the next call with the same `--json` and `--resume` goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos_real.faults import FAULTS, Place
from benchmarks.chaos_real.online import Online
from benchmarks.chaos_real.records import COLUMNS, STOP, good, read, summary, table
from benchmarks.chaos_real.run import Population, Record, run, undisturbed
from benchmarks.chaos_real.stack import Stack
from benchmarks.chaos_real.stores import Stores
from benchmarks.chaos_real.wall_clock import WallClock
from benchmarks.common import console, machine, publish
from serve_app.serving.launch.simulated import simulate

ROWS, SIMULATED_ROWS = 600, 1500
SIMULATED = {"step_ms": 20, "prefill_ms_per_token": 0.4}


def main() -> None:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is running is stopped then, too
    names = [name for name in args.faults if not (args.simulated and FAULTS[name].engine)]
    records = read(args.json, simulated=args.simulated) if args.resume and args.json else []
    campaign = Campaign(args, records)
    campaign.work(names)
    result = campaign.result()
    publish("chaos on the real stack", COLUMNS, table(result), result, args.json)
    if not good(result):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too, after every run")
    parser.add_argument("--runs", type=int, default=3, help="of each fault")
    parser.add_argument("--faults", type=_names, default=list(FAULTS), metavar="A,B,…",
                        help=f"default all: {', '.join(FAULTS)}")  # fmt: skip
    parser.add_argument("--simulated", action="store_true", help="simulated engines; faults of real ones are left out")
    parser.add_argument("--rows", type=int, default=None, help=f"of each population ({ROWS}; simulated "
                        f"{SIMULATED_ROWS})")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--resume", action="store_true", help="go on with the runs in the file of --json")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of victims and moments")
    parser.add_argument("--logs", type=Path, default=None, help="keep the stacks' folders here; a short path")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in FAULTS]:
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(unknown)}")
    return names


class Campaign:
    """All the runs that are asked for and not yet done, on as many stacks as that takes."""

    def __init__(self, args: argparse.Namespace, records: list[Record]) -> None:
        self._args = args
        self._records = records
        self._rng = random.Random(args.seed)
        self._deadline: float = time.monotonic() + 60 * args.minutes
        self._machine = machine()

    def work(self, names: list[str]) -> None:
        while (clock := self._next(names, None)) and self._in_time():
            needs_clock = FAULTS[clock].clock
            with tempfile.TemporaryDirectory(prefix="chaos", ignore_cleanup_errors=True) as folder:
                logs = self._args.logs and self._args.logs / str(len(self._records))
                alike = [name for name in names if FAULTS[name].clock == needs_clock]
                self._on_one_stack(alike, logs or Path(folder), needs_clock)

    def result(self) -> dict[str, Any]:
        about = {"seed": self._args.seed, "rows": self._rows, "machine": self._machine}
        return summary(self._records, simulated=self._args.simulated, **about)

    @property
    def _rows(self) -> int:
        return int(self._args.rows or (SIMULATED_ROWS if self._args.simulated else ROWS))

    def _in_time(self) -> bool:
        return time.monotonic() < self._deadline

    def _next(self, names: list[str], store: str | None) -> str | None:
        """The fault with the fewest runs, on this store if there is any."""
        counts = {name: sum(one.fault == name for one in self._records) for name in names}
        open_ = [name for name, count in counts.items() if count < self._args.runs]
        here = [name for name in open_ if FAULTS[name].store == store] or open_
        return min(here, key=lambda name: counts[name], default=None)

    def _on_one_stack(self, names: list[str], folder: Path, clock: bool) -> None:
        """Until all is done, time is up, or a run did not end and has left a stack in pieces."""
        folder.mkdir(parents=True, exist_ok=True)
        wall_clock = WallClock(folder)
        document = self._document()
        with ExitStack() as entered:
            stores = entered.enter_context(Stores(folder))
            stack = Stack(folder, document, wall_clock.environment if clock else {})
            entered.callback(lambda: self._add(Record(STOP, ended=True, orphans=stack.left)))
            entered.enter_context(stack)
            place = Place(stack, stores, wall_clock, self._rng)
            model = self._model(document)
            population, store, online = Population.of(self._rows), None, None
            while (name := self._next(names, store)) and self._in_time():
                fault = FAULTS[name]
                if fault.store != store:
                    store = fault.store
                    console.print(f"deploying on the {store} store")
                    stack.deploy(stores.url(store))
                    stack.wait_until_whole()
                if online is None:
                    population = undisturbed(stack, place, population, store)
                    online = entered.enter_context(Online(stack.base_url, model))
                record = run(place, name, fault, population, f"run-{len(self._records)}", online)
                self._add(record)
                if not record.ended:
                    return

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = yaml.safe_load(Path("config.yaml").read_text())
        del document["applications"][2:]  # files and batches
        replicas, driver = document["applications"]
        if self._args.simulated:
            replicas["args"]["simulated"] = dict(SIMULATED)
            simulate(document)
            replicas["deployments"][0]["ray_actor_options"] = {"num_cpus": 1}
        driver["args"]["chunk_rows"] = 16
        return document

    def _model(self, document: dict[str, Any]) -> str:
        engine = document["applications"][0]["args"]["engine"]
        name = engine.get("served_model_name", engine.get("model"))
        return str(name[0] if isinstance(name, list) else name)

    def _add(self, record: Record) -> None:
        self._records.append(record)
        console.print(json.dumps({k: v for k, v in vars(record).items() if v not in (None, "", [], {})}))
        if self._args.json:
            self._args.json.write_text(json.dumps(self.result()) + "\n")


if __name__ == "__main__":
    main()
