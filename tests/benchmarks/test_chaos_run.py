"""A run of `make chaos-real` against the real driver, its routes and a simulated engine here, without Ray."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import uvicorn
from fastapi import FastAPI

from benchmarks.chaos_real import run as run_module
from benchmarks.chaos_real.faults import Fault, Place
from benchmarks.chaos_real.online import Online
from benchmarks.chaos_real.processes import Processes
from benchmarks.chaos_real.run import Population, run, undisturbed
from benchmarks.chaos_real.stores import LOCAL, Stores
from benchmarks.chaos_real.wall_clock import WallClock
from benchmarks.simulated import SimulatedPool
from serve_app.client.populations import PopulationClient
from serve_app.driver.deployment import build_app
from serve_app.driver.jobs.job import make_dispatcher
from serve_app.driver.jobs.registry import Jobs
from serve_app.settings import DriverSettings, SimulatedSettings

ROWS = 240


@contextmanager
def driver(store: str) -> Iterator[str]:
    """Its base URL, with an engine's routes beside it."""
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        pool = SimulatedPool(["a", "b"], SimulatedSettings(step_ms=10, prefill_ms_per_token=0.2))
        settings = DriverSettings(store=store, chunk_rows=8, window_rows=8, max_window_rows=8, commit_seconds=0.1)
        async with make_dispatcher(pool, settings) as dispatcher:
            app = FastAPI()
            app.mount("/v1/populations", build_app(Jobs(settings, dispatcher), pool))
            app.mount("/", pool.engines["a"].app())
            servers.append(uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical")))
            await servers[0].serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    while not (servers and servers[0].started):
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{servers[0].servers[0].sockets[0].getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("stack")
    with Stores(folder) as stores, driver(stores.url(LOCAL)) as base_url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "whole", lambda stack: True)  # replicas of this process have none of their own
        it: Any = SimpleNamespace(client=PopulationClient(base_url), processes=Processes("none"))
        place = Place(it, stores, WallClock(folder), random.Random(1))
        population = undisturbed(it, place, Population.of(ROWS), LOCAL)
        with Online(base_url, "simulated") as online:
            yield lambda fault: run(place, "fault", fault, population, f"run-{time.monotonic_ns()}", online)


def test_a_full_store_delays_the_rows_and_loses_none(stack: Any) -> None:
    record = stack(Fault(lambda place: place.stores.fill(psutil.Process().pid), lasts_s=2.0))
    assert (record.ended, record.rows, record.lost, record.duplicated, record.defaulted) == (True, ROWS, 0, 0, 0)
    assert record.recovery_s >= 1.5
    assert record.online_requests > 0
    assert not record.online_errors


def test_a_job_that_does_not_complete_is_counted_with_the_rows_that_it_has_not(stack: Any) -> None:
    def cancel(place: Place) -> Any:
        (job,) = [one for one in place.stack.client.list() if one.state.active]
        place.stack.client.cancel(job.id)
        return lambda: None

    record = stack(Fault(cancel))
    assert not record.ended
    assert "the job is cancelled" in record.message
    assert 0 < record.lost < ROWS


def test_a_fault_that_cannot_be_done_is_told(stack: Any) -> None:
    def impossible(place: Place) -> Any:
        raise NotImplementedError("no right to mount")

    record = stack(Fault(impossible))
    assert (record.ended, record.message) == (False, "NotImplementedError: no right to mount")
