"""Ten times what the server can do: is what it accepts still answered in time, and does it tell the rest?

In one run: the capacity (a closed loop of many clients); then an open loop at ten times that rate for a minute, of two
floods and a small key that asks for a fifth of the capacity; then half the capacity, until answers are as fast as they
were; then the same beside a population. Of accepted requests the latency is compared with that at capacity; the rest
must get 429 with Retry-After. Memory of every process is looked at before and in the flood.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import console, machine, publish
from benchmarks.load import prompts
from benchmarks.overload.clients import Ask, Asker, figures, recovery_s
from benchmarks.soak.census import Census, Look, Sampler
from benchmarks.soak.site import Site, running
from serve_app.client.populations import PopulationClient
from serve_app.spec import JobSpec, JobStatus

FACTOR = 10.0
CONCURRENCY = 32
CAPACITY_S, WARM_S, AFTER_S = 30.0, 20.0, 30.0
# Of the capacity; the floods share the rest of ten times it.
SMALL, FLOODS = 0.2, {"flood": 0.6, "other_flood": 0.4}
AFTER = 0.5
# More than are done meanwhile.
POPULATION_ROWS = 20_000
POPULATION_AFTER_S = 20.0
# A device of 10 requests a second; two of them, and the client, must leave the machine's cores time for refusals.
SIMULATED = {"step_ms": 100.0, "prefill_ms_per_token": 0.0}
KEYS: dict[str, dict[str, Any]] = {"small": {}, "flood": {}, "other_flood": {}}
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each flood")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"))
    parser.add_argument("--simulated", action="store_true", help="simulated engines, to try the rest")
    parser.add_argument("--folder", type=Path, default=None, help="keep logs and store there")
    args = parser.parse_args()
    hardware = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "site"
        simulated = SIMULATED if args.simulated else None
        with running(args.config, folder, KEYS, simulated=simulated) as site:
            result = asyncio.run(overload(site, args.seconds))
    result |= {"simulated": args.simulated, "seconds": args.seconds, **hardware}
    phases = ("capacity", "flood", "after", "flood_beside_population")
    rows = [key for key in result["flood"] if key not in ("failed_texts", "accepted_share")]
    lines = [[row, *(str(result[phase].get(row, "")) for phase in phases)] for row in rows]
    publish(f"overload: {FACTOR:g} times the capacity", ["", *phases], lines, result, args.json)
    sys.exit(not passed(result))


def passed(result: dict[str, Any]) -> bool:
    floods = [result["flood"], result["flood_beside_population"]]
    return not any(one["failed"] for one in floods) and result["population"]["rows_after"] > 0


async def overload(site: Site, seconds: float) -> dict[str, Any]:
    census = Census(site.server.processes, site.temporary)
    async with Asker(site) as asker:
        await asker.closed(CONCURRENCY, WARM_S, "flood")
        at_capacity = await asker.closed(CONCURRENCY, CAPACITY_S, "flood")
        capacity = figures(at_capacity, CAPACITY_S)
        console.print(f"capacity: {capacity}", markup=False)
        per_s, normal_s = capacity["accepted_per_s"], capacity["ttft_p99_ms"] / 1000
        flooding, memory = await flood(asker, census, per_s, seconds)
        # At once, while what was accepted last still waits.
        recovering = await asker.open({"small": AFTER * per_s}, AFTER_S)
        flooded, after = await flooding, await recovering
        beside, population = await beside_population(site, asker, census, per_s, seconds)
    flooded_figures = figures(flooded, seconds)
    return {
        "capacity_per_s": per_s,
        "factor": FACTOR,
        "recovery_s": recovery_s(after, normal_s),
        "ttft_p99_ratio": round(flooded_figures["ttft_p99_ms"] / capacity["ttft_p99_ms"], 2),
        "took_p99_ratio": round(flooded_figures["took_p99_ms"] / capacity["took_p99_ms"], 2),
        "small_key_accepted_share": flooded_figures["accepted_share"]["small"],
        "flood_grew_mib_max": memory,
        "capacity": capacity,
        "flood": flooded_figures,
        "after": figures(after, AFTER_S),
        "flood_beside_population": figures(beside, seconds),
        "population": population,
    }


async def flood(asker: Asker, census: Census, per_s: float, seconds: float) -> tuple[asyncio.Future[list[Ask]], float]:
    """The answers to come, and by how many MiB the process grew that grew most."""
    rates = {"small": SMALL * per_s}
    rates |= {key: part * (FACTOR - SMALL) * per_s for key, part in FLOODS.items()}
    before = census.look(whole=False)
    with Sampler(census, 5.0) as sampler:
        asking = await asker.open(rates, seconds)
    return asking, max((_grew_mib(before, look) for look in sampler.looks), default=0.0)


async def beside_population(
    site: Site, asker: Asker, census: Census, per_s: float, seconds: float
) -> tuple[list[Ask], dict[str, Any]]:
    """The flood while a population runs, and the rows that were done before, in and after it."""
    client = PopulationClient(site.base_url)
    rows = [{"custom_id": f"row-{n}", "prompt": text} for n, text in enumerate(prompts(POPULATION_ROWS, "overload"))]
    job = await asyncio.to_thread(client.submit, JobSpec(rows=tuple(rows), max_tokens=4, workload="overload/v1"))

    async def status() -> JobStatus:
        return await asyncio.to_thread(client.status, job)

    while (before := await status()).ok == 0:
        await asyncio.sleep(0.5)
    asking, grew_mib = await flood(asker, census, per_s, seconds)
    end, asks = await status(), await asking
    await asyncio.sleep(POPULATION_AFTER_S)
    after = await status()
    if after.state.active:
        await asyncio.to_thread(client.cancel, job)
    return asks, {
        "rows_in_flood": end.ok - before.ok,
        "rows_after": after.ok - end.ok,
        "rows_per_s_after": round((after.ok - end.ok) / POPULATION_AFTER_S, 1),
        "rows_failed": after.failed + after.invalid,
        "grew_mib_max": grew_mib,
    }


def _grew_mib(before: Look, now: Look) -> float:
    grown = [
        now.processes[one].rss_bytes - held.rss_bytes for one, held in before.processes.items() if one in now.processes
    ]
    return round(max(grown, default=0) / MIB, 1)


if __name__ == "__main__":
    main()
