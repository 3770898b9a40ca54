"""Every history must keep what was committed: two drivers at once, and anything may happen to any of their requests.

Each history runs the project's own log and storage code on one part. Its requests come in an order that a seed
decides. In three of four histories some are refused, some are done and not answered, or sent again for that reason,
some arrive after others, and some are the last of their driver. A reader looks meanwhile; later drivers finish the
part. A row is lost if its commit returned and a reader did not see it then or later. Stores: a local folder with its
lock, obstore's store in memory and an S3 server (moto), both with conditional writes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.common import console, publish
from benchmarks.store_model.backends import Backend
from benchmarks.store_model.history import History, run

SHARE = 100  # histories a task
COUNTS = ("done", "killed", "refused", "unanswered", "resent", "late")
FINDINGS = ("lost", "duplicated", "unfinished", "broken")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--memory", type=int, default=6000, help="histories on a conditional store in memory")
    parser.add_argument("--local", type=int, default=4000, help="histories on a local folder")
    parser.add_argument("--s3", type=int, default=1000, help="histories on an S3 server")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first one; printed, to run it again")
    args = parser.parse_args()
    console.print(f"seed {args.seed}")
    found = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        for name in ("memory", "local", "s3"):
            number = getattr(args, name)
            seeds = [range(n, min(n + SHARE, args.seed + number)) for n in range(args.seed, args.seed + number, SHARE)]
            found[name] = sum(processes.map(partial(explore, name), seeds), Counter[str]())
    keys = ("histories", "requests", *COUNTS[1:], *FINDINGS)
    lines = [[key, *(f"{found[name][key]:,}" for name in found)] for key in keys]
    total = sum(found.values(), Counter[str]())
    result = {
        "histories": total["histories"],
        **{key: total[key] for key in FINDINGS},
        "seed": args.seed,
        "stores": {name: {key: counts[key] for key in keys} for name, counts in found.items()},
        "versions": {name: version(name) for name in ("obstore", "filelock", "pyarrow", "moto")},
    }
    publish("the store's log, model-checked", ["", *found], lines, result, args.json)
    if any(total[key] for key in FINDINGS):
        sys.exit(1)


def explore(name: str, seeds: range) -> Counter[str]:
    """Run a history for each seed; what was counted. Prints those that lose something."""
    total: Counter[str] = Counter()
    with Backend(name) as backend:
        for seed in seeds:
            history = run(backend.folder(), seed)
            total.update(history.counts)
            total.update(
                histories=1,
                requests=history.counts.total(),
                lost=history.lost,
                duplicated=history.duplicated,
                unfinished=history.unfinished,
                broken=bool(history.broken),
            )
            if not history.good:
                show(name, history)
    return total


def show(name: str, history: History) -> None:
    console.print(f"{name}, seed {history.seed}: {history.broken}")
    console.print("\n".join(f"  {line}" for line in history.log), markup=False)


if __name__ == "__main__":
    main()
