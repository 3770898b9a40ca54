"""Everything that clients do, for long: does an error come up, and does anything grow?

Online clients (chats whole and streamed, sessions, lists, structured output, leaving ones, wrong ones) and population
work (jobs of rows and files, batches, cancels, downloads) share one server with keys. After a warm-up the traffic
stops for a moment and the processes are looked at; then it goes on, and every process's memory is sampled; then it
stops, and they are looked at again. Memory grows by the slope through all samples; descriptors, threads, processes,
shared memory and temporary files are compared between the two quiet moments.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import console, machine, publish
from benchmarks.soak.census import Census, Look, Sampler
from benchmarks.soak.growth import Growth, curves, growths
from benchmarks.soak.offline import OfflineClient
from benchmarks.soak.online import OnlineClient, new_session
from benchmarks.soak.probes import Probes, log_bytes, open_jobs, ray_objects
from benchmarks.soak.site import Site, running
from benchmarks.soak.tally import Tally

ONLINE, OFFLINE = 4, 2
SAMPLE_EVERY_S = 5.0
# Traffic that is over: idle connections close, freed work is collected.
SETTLE_S = 20.0
MOST_WARM_S, WARM_SHARE = 300.0, 0.25
MOST_GROWTH_PCT = 5.0
KEYS: dict[str, dict[str, Any]] = {"app": {}, "limited": {"requests_per_minute": 1}}
# Ray starts and stops these as it likes.
COME_AND_GO = {"idle worker"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--minutes", type=float, default=20.0, help="of traffic, the warm-up included")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"))
    parser.add_argument("--simulated", action="store_true", help="simulated engines, to try the rest")
    parser.add_argument("--folder", type=Path, default=None, help="keep logs, store and all samples there")
    args = parser.parse_args()
    hardware = machine()
    simulated: dict[str, Any] | None = {} if args.simulated else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "site"
        with running(args.config, folder, KEYS, simulated=simulated) as site:
            result, lines = asyncio.run(soak(site, args.minutes * 60))
    result |= {"simulated": args.simulated, **hardware}
    columns = ["process", "MiB first", "last", "grew %", "descriptors", "threads"]
    publish(f"soak: {args.minutes:g} minutes", columns, lines, result, args.json)
    sys.exit(not passed(result))


def passed(result: dict[str, Any]) -> bool:
    nothing = [key for key in result if key.endswith("_leaked")] + ["errors", "open_jobs"]
    return result["rss_growth_pct_max"] <= MOST_GROWTH_PCT and not any(result[key] for key in nothing)


async def soak(site: Site, seconds: float) -> tuple[dict[str, Any], list[list[str]]]:
    """The result, and a line of the table for each process."""
    census, tally, probes = Census(site.server.processes, site.temporary), Tally(), Probes(site)
    warm_s = min(MOST_WARM_S, WARM_SHARE * seconds)
    await traffic(site, tally, warm_s)
    before, objects_before, log_before = await quiet(site, census)
    with Sampler(census, SAMPLE_EVERY_S) as sampler:
        async with probes:
            await traffic(site, tally, seconds - warm_s)
    after, objects_after, log_after = await quiet(site, census)
    grown = growths(sampler.looks, before, after)
    curves_file = site.temporary.parent / "curves.json"
    curves_file.write_text(json.dumps(curves([before, *sampler.looks, after])))
    for kind, texts in tally.texts.items():
        console.print(f"{kind}: {tally.errors[kind]} errors: {texts}", markup=False)
    result = {
        "minutes": round(seconds / 60, 2),
        "requests": tally.done.total(),
        "rows": tally.rows,
        "errors": tally.errors.total(),
        **leaks(grown, before, after),
        "objects_leaked": max(0, objects_after - objects_before),
        "open_jobs": await open_jobs(site),
        **probes.figures(),
        "log_mib_per_hour": round((log_after - log_before) / 2**20 * 3600 / (seconds - warm_s), 1),
        "kinds": dict(tally.done),
        "errors_by_kind": tally.errors,
        "error_texts": tally.texts,
        "processes": [_named(one) for one in grown],
    }
    return result, [_line(one) for one in sorted(grown, key=lambda one: -one.pct)]


async def traffic(site: Site, tally: Tally, seconds: float) -> None:
    """All clients for so long; what they are at is finished."""
    ended = asyncio.Event()
    async with new_session() as session:
        clients = [OnlineClient(site, tally, session, number).run(ended) for number in range(ONLINE)]
        workers = [OfflineClient(site, tally, session, number).run(ended) for number in range(OFFLINE)]
        working = asyncio.gather(*clients, *workers)
        await asyncio.sleep(seconds)
        ended.set()
        await working


async def quiet(site: Site, census: Census) -> tuple[Look, int, int]:
    """What is there when nobody asks for anything: processes, Ray's objects, bytes of logs."""
    await asyncio.sleep(SETTLE_S)
    return census.look(), await ray_objects(site), log_bytes(site)


def leaks(grown: Sequence[Growth], before: Look, after: Look) -> dict[str, Any]:
    new = {being for being in set(after.processes) - set(before.processes) if being.role not in COME_AND_GO}
    gone = {being for being in set(before.processes) - set(after.processes) if being.role not in COME_AND_GO}
    return {
        "rss_growth_pct_max": round(max((one.pct for one in grown), default=0.0), 2),
        "fds_leaked": sum(max(0, one.descriptors) for one in grown),
        "threads_leaked": sum(max(0, one.threads) for one in grown),
        "processes_leaked": len(new) - len(gone),
        "processes_replaced": sorted(being.role for being in gone),
        "shm_leaked": len(after.shared - before.shared),
        "temporary_leaked": len(after.temporary - before.temporary),
        "leaked": {"shm": sorted(after.shared - before.shared), "tmp": sorted(after.temporary - before.temporary)},
    }


def _named(one: Growth) -> dict[str, Any]:
    fields = {**one._asdict(), "being": f"{one.being.role} {one.being.pid}"}
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in fields.items()}


def _line(one: Growth) -> list[str]:
    name = f"{one.being.role} {one.being.pid}"
    figures = [f"{one.first_mib:.1f}", f"{one.last_mib:.1f}", f"{one.pct:.1f}"]
    return [name, *figures, f"{one.descriptors:+d}", f"{one.threads:+d}"]


if __name__ == "__main__":
    main()
