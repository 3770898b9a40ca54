"""A real S3 server for the tests of stores, started once a module."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import stamina

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.driver.jobs.job import dispatch_settings
from serve_app.driver.jobs.registry import Jobs
from serve_app.settings import DriverSettings
from serve_app.storage.filesystem import resolve
from tests.driver.kit import MakeJobs
from tests.fakes import FakePool


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """What is tried again is tried again at once, as often as it would be."""
    with stamina.set_testing(True, attempts=sys.maxsize, cap=True):
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket, less its query and the query, of an S3 server of our own."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            query = f"endpoint_override={host}:{port}&scheme=http"
            filesystem, _ = resolve(f"s3://bucket?{query}&allow_bucket_creation=true")
            filesystem.create_dir("bucket")
            yield f"s3://bucket/{{}}?{query}"
        finally:
            server.stop()


@pytest.fixture
async def make_jobs(tmp_path: Path) -> AsyncIterator[MakeJobs]:
    async with AsyncExitStack() as stack:

        async def make(pool: FakePool, **settings: Any) -> Jobs:
            fast = {"chunk_rows": 8, "window_rows": 16, "max_window_rows": 16, "commit_seconds": 0.01}
            sizes = DriverSettings(**{"store": str(tmp_path / "runs"), **fast, **settings})
            dispatcher = Dispatcher(pool, dispatch_settings(sizes).model_copy(update={"refresh_s": 0.02}))
            jobs = Jobs(sizes, await stack.enter_async_context(dispatcher))
            stack.push_async_callback(jobs.close)
            return jobs

        yield make
