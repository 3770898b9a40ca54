"""What the server tells when it is asked: how long its loops take to answer, its objects, jobs and logs."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from pathlib import Path

import aiohttp

from benchmarks.load import percentile
from benchmarks.soak.online import new_session
from benchmarks.soak.site import Site

EVERY_S = 1.0
# Answered by their process's loop, without an engine and without the store.
PATHS = {"proxy": "/-/healthz", "driver": "/v1/populations/nobody"}


class Probes:
    """Asks the proxy and the driver once a second while the block runs: their loops' lag and little more."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._took_ms: dict[str, list[float]] = {name: [] for name in PATHS}

    async def __aenter__(self) -> Probes:
        self._asking = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *args: object) -> None:
        self._asking.cancel()
        await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        async with new_session() as http:
            while True:
                for name, path in PATHS.items():
                    started = time.perf_counter()
                    with suppress(aiohttp.ClientError, TimeoutError):
                        async with http.get(self._site.base_url + path, headers=self._site.headers("app")) as answer:
                            await answer.read()
                        self._took_ms[name].append((time.perf_counter() - started) * 1000)
                await asyncio.sleep(EVERY_S)

    def figures(self) -> dict[str, float]:
        return {
            f"{name}_answers_p{q}_ms": round(percentile(took_ms, q), 1)
            for name, took_ms in self._took_ms.items()
            for q in (50, 99)
            if took_ms
        }


async def ray_objects(site: Site) -> int:
    """Objects that Ray's processes hold references to, by its dashboard."""
    url, bearer = f"{_dashboard(site)}/api/v0/objects", {"authorization": f"Bearer {site.ray_token}"}
    async with new_session() as http, http.get(url, params={"limit": 10_000}, headers=bearer) as answer:
        answer.raise_for_status()
        return len((await answer.json())["data"]["result"]["result"])


async def open_jobs(site: Site) -> int:
    """Populations and batches that are not at rest."""
    async with new_session() as http:
        listed = {}
        for name in ("populations", "batches"):
            url = f"{site.base_url}/v1/{name}"
            async with http.get(url, headers=site.headers("app")) as answer:
                listed[name] = (await answer.json())["data"]
    active = [job for job in listed["populations"] if job["state"] in ("queued", "running")]
    under_way = {"validating", "in_progress", "finalizing", "cancelling"}
    return len(active) + len([batch for batch in listed["batches"] if batch["status"] in under_way])


def log_bytes(site: Site) -> int:
    """Of Ray's session and of `serve run`."""
    log = site.temporary.parent / "serve.log"
    session = re.search(r"--session-dir=(\S+)", " ".join(_commands(site)))
    files = [log, *(Path(session[1], "logs").rglob("*") if session else ())]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _commands(site: Site) -> list[str]:
    return [" ".join(process.cmdline()) for process in site.server.processes()]


def _dashboard(site: Site) -> str:
    found = re.search(
        r"127\.0\.0\.1:\d+", (site.temporary.parent / "serve.log").read_text().partition("dashboard at")[2]
    )
    return f"http://{found[0]}" if found else ""
