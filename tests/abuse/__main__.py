"""`python -m tests.abuse`: hostile requests to every route and hostile files to every reader, at least 20,000.

Prints a table and one JSON line, last. Exit code 1 if anything crashed, answered 500 or above, answered an error in
another shape than OpenAI's, took too long, reached what is outside the store, or grew in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import console, machine, publish
from tests.abuse.attack import attack
from tests.abuse.heavy import HEAVY, SMALL, read_heavy
from tests.abuse.ledger import Ledger
from tests.abuse.readers import read_hostile
from tests.abuse.site import open_site
from tests.abuse.sockets import break_http

# Of the process that answers, from its first thousand requests on. It grows by some 40 MB in the first 10,000 requests,
# not in the next 30,000, and by another 50 with floods of headers.
MOST_GROWTH_MB = 150.0
WARM = 1000
# Of all inputs, those that are files, and those that need a socket.
FILES, SOCKETS = 0.25, 0.02


def main() -> int:
    options = _options()
    logging.disable(logging.CRITICAL)  # each refused request is logged
    console.print(f"{options.inputs} inputs with seed {options.seed}")
    result, ledger = abuse(inputs=options.inputs, seed=options.seed, heavy=tuple(HEAVY) if options.heavy else SMALL)
    publish("Abuse", ["where", "inputs", "wrong"], ledger.table(), {**result, **machine()}, options.json)
    return 1 if result["failures"] else 0


def abuse(*, inputs: int, seed: int, heavy: tuple[str, ...]) -> tuple[dict[str, Any], Ledger]:
    """Send them all; the result as it is printed, and the counts."""
    ledger, started = Ledger(), time.monotonic()
    files, sockets = int(inputs * FILES), int(inputs * SOCKETS)
    growth = asyncio.run(_requests(ledger, seed, inputs - files - sockets, sockets))
    if growth > MOST_GROWTH_MB:
        ledger.fail("this process", "memory", "", f"{growth:.0f} MB")
    read_hostile(ledger, seed=seed, inputs=files)
    heaviest = read_heavy(ledger, heavy)
    return {
        "benchmark": "abuse",
        "inputs": ledger.inputs,
        "routes": dict(ledger.routes),
        "formats": dict(ledger.formats),
        "crashes": ledger.count("crash") + ledger.count("dead"),
        "answers_5xx": ledger.count("5xx"),
        "outside_store": ledger.count("outside") + ledger.count("leak") + ledger.count("connected"),
        "misshapen": ledger.count("shape"),
        "slow": ledger.count("slow"),
        "rss_growth_mb": round(growth, 1),
        "heaviest_file_mb": round(heaviest, 1),
        "seed": seed,
        "wall_s": round(time.monotonic() - started, 1),
        "failures": ledger.told(),
    }, ledger


async def _requests(ledger: Ledger, seed: int, inputs: int, sockets: int) -> float:
    """MB that this process grew by after it was warm."""
    with tempfile.TemporaryDirectory() as name:
        async with open_site(Path(name)) as site:
            warm = min(WARM, inputs // 2)
            await attack(site, ledger, seed=seed, inputs=warm)
            before = _rss_mb()
            await attack(site, ledger, seed=seed, first=warm, inputs=inputs - warm)
            await break_http(site.app, ledger, seed=seed, inputs=sockets)
            return _rss_mb() - before


def _rss_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=24_000, help="bombs and slow connections come on top")
    parser.add_argument("--seed", type=int, default=20261128)
    parser.add_argument("--no-heavy", dest="heavy", action="store_false", help="leave out what has 100 MB and more")
    parser.add_argument("--json", type=Path, help="write the result there too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
