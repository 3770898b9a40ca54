"""`python -m tests.contract`: the OpenAI surface, by the SDK, by plain HTTP and by at least 10,000 made-up requests.

Starts config.yaml on a free port, or takes the running server that --base-url names. Prints a table of the routes and
one JSON line, last. Exit code 1 if a test failed, an answer was the server's fault (5xx or none), or a replica's or
worker's process is not the one that it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import httpx
import yaml

from benchmarks.common import console, keep_replicas_apart, machine, publish
from serve_app.serving.launch.local import local_serve
from tests.conftest import own_document
from tests.contract.conftest import CONTRACT_URL
from tests.contract.fuzz import SKIPPED, fuzz
from tests.contract.tally import Tally
from tests.outcomes import run_tests

COLUMNS = ["route", "requests", "2xx", "3xx", "4xx", "5xx", "no answer"]


def main() -> int:
    options = _options()
    with server(options.base_url, options.config) as base_url:
        before = processes(base_url)
        os.environ[CONTRACT_URL] = base_url
        tests = run_tests("-m", "contract", str(Path(__file__).parent))
        tally, wall_s = Tally(), time.monotonic()
        console.print(f"making up {options.requests} requests with seed {options.seed}")
        fuzz(base_url, requests=options.requests, seed=options.seed, workers=options.workers, tally=tally)
        wall_s = time.monotonic() - wall_s
        survived = httpx.get(f"{base_url}/health", timeout=60).status_code == 200 and processes(base_url) == before
    for failure in tally.failures:
        console.print(f"{failure.route}: {failure.status or 'no answer'}", failure.answer, failure.command, sep="\n  ")
    result = {
        "benchmark": "contract",
        "tests": dict(tests),
        "seed": options.seed,
        "requests": tally.total,
        "status": {str(i) + "xx": tally.of_class(i) for i in (2, 3, 4, 5)} | {"none": tally.of_class(0)},
        "routes": len(tally.counts),
        "skipped": SKIPPED,
        "processes_survived": survived,
        "processes": len(before),
        "wall_s": round(wall_s, 1),
        "failures": [asdict(failure) for failure in tally.failures],
        **machine(),
    }
    publish("Made-up requests by route", COLUMNS, tally.table(), result, options.json)
    return 0 if survived and not tally.bad and not tests["failed"] and tests["passed"] else 1


@contextmanager
def server(base_url: str | None, config: Path) -> Iterator[str]:
    """The running server that was named, or config.yaml's applications on a free port with a store of their own."""
    if base_url:
        yield base_url.rstrip("/").removesuffix("/v1")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = own_document(folder, config)
        keep_replicas_apart(document)
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(document))
        with local_serve(path, log=folder / "serve.log", on_wait=console.print) as url:
            yield url


def processes(base_url: str) -> set[int]:
    """Ids of the replicas' processes and their engines' workers."""
    replicas = httpx.get(f"{base_url}/v1/populations/replicas", timeout=60).json()["data"]
    return {pid for replica in replicas for pid in (replica["pid"], *replica["engine"]["worker_pids"])}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.contract", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base-url", help="of a running server; default: start --config")
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[2] / "config.yaml")
    parser.add_argument("--requests", type=int, default=10_000, help="made up, at least")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--workers", type=int, default=8, help="requests open at once")
    parser.add_argument("--json", type=Path, help="write the result there too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
