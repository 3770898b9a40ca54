"""Fixtures of the tests here."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.driver.batches.files import FileStore
from serve_app.driver.batches.registry import BatchRegistry
from serve_app.driver.jobs.job import dispatch_settings
from serve_app.driver.jobs.registry import Jobs
from serve_app.settings import DriverSettings
from tests.driver.batches.kit import Clock, Driver, MakeDriver
from tests.fakes import FakePool


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeDriver]:
    monkeypatch.setattr("serve_app.driver.batches.run.POLL_S", 0.01)
    store = str(tmp_path / "runs")
    async with AsyncExitStack() as stack:

        async def driver(pool: FakePool, **settings: Any) -> Driver:
            fast = {"chunk_rows": 8, "window_rows": 16, "max_window_rows": 16, "commit_seconds": 0.01}
            sizes = DriverSettings(**{"store": store, **fast, **settings})
            dispatcher = Dispatcher(pool, dispatch_settings(sizes).model_copy(update={"refresh_s": 0.02}))
            jobs = Jobs(sizes, await stack.enter_async_context(dispatcher))
            files = FileStore(store, now=clock)
            made = Driver(jobs, BatchRegistry(store, jobs, files=files, now=clock), files)
            stack.push_async_callback(made.die)
            return made

        yield driver
