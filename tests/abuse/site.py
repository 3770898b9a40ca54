"""All applications in one process, as Serve mounts them, over simulated replicas; and traps around them.

Traps: a folder beside the store whose files nobody may read or change, and a port that nobody may connect to.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.driver.batches.files import FileStore
from serve_app.driver.batches.registry import BatchRegistry
from serve_app.driver.batches.routes import batches_app, files_app
from serve_app.driver.deployment import build_app
from serve_app.driver.jobs.job import dispatch_settings
from serve_app.driver.jobs.registry import Jobs
from serve_app.engine.simulated.engine import SimulatedEngine
from serve_app.schema import Chunk, Finished, ReplicaInfo
from serve_app.serving.gate import accounting
from serve_app.serving.gate.middleware import Gate
from serve_app.serving.requests.http_rows import answer_requests
from serve_app.serving.routes import add_routes
from serve_app.settings import AccessSettings, ControlAccessSettings, DriverSettings, SimulatedSettings

MODEL = "sim"
CANARY = "the-canary-that-nobody-may-read"
FAST = {"chunk_rows": 8, "window_rows": 16, "max_window_rows": 16, "commit_seconds": 0.01}


class SimulatedPool:
    """One simulated replica in this process."""

    def __init__(self) -> None:
        settings = SimulatedSettings(step_ms=0, prefill_ms_per_token=0)
        self.engine = SimulatedEngine({"served_model_name": MODEL}, settings, count=accounting.count)
        self._replica = ReplicaInfo("sim#0", "node", os.getpid(), (), self.engine.info)

    async def replicas(self) -> list[ReplicaInfo]:
        return [self._replica]

    async def failure(self) -> str:
        return ""

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        engine = self.engine
        rows = engine.run(chunk)
        if chunk.path:
            rows = answer_requests(engine.app(), chunk, model=MODEL, check_health=engine.check_health)
        async for completions in rows:
            yield Finished(self._replica, completions)


class Trap:
    """Listens on a port of this host and counts who comes."""

    def __init__(self) -> None:
        self.caught = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._server.accept()
                self.caught += 1
                connection.close()

    def close(self) -> None:
        # Closing alone does not wake up a thread that accepts.
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


class Site:
    """`app` serves all routes. `folder` has the store in `runs` and, beside it, what nobody may touch."""

    def __init__(self, folder: Path, jobs: Jobs, pool: SimulatedPool, trap: Trap) -> None:
        self.folder, self.jobs, self.trap = folder, jobs, trap
        store = jobs.settings.store
        files = FileStore(store)
        self.batches = BatchRegistry(store, jobs, files=files)
        engine: Any = pool.engine.app()
        add_routes(engine, _no_metrics)
        self._engine = Gate(engine, AccessSettings(log_requests=False), "inference")
        control = ControlAccessSettings(log_requests=False)
        apps = {"populations": build_app(jobs, pool), "files": files_app(files), "batches": batches_app(self.batches)}
        self._apps = {f"/v1/{name}": Gate(app, control, "populations") for name, app in apps.items()}

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            for prefix, app in self._apps.items():
                if scope["path"] == prefix or scope["path"].startswith(f"{prefix}/"):
                    await app({**scope, "root_path": prefix}, receive, send)
                    return
            await self._engine(scope, receive, send)

    def outside(self) -> dict[str, bytes]:
        """All that is beside the store, by path."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if (place := path.relative_to(self.folder)).parts[0] != "runs":
                found[str(place)] = path.read_bytes() if path.is_file() else b""
        return found


async def _no_metrics() -> str:
    return ""


@asynccontextmanager
async def open_site(folder: Path) -> AsyncIterator[Site]:
    """The applications over a store in `folder`, which must be empty; they work in a folder beside it."""
    (folder / "secret.jsonl").write_text(f'{{"prompt": "{CANARY}"}}\n')
    (folder / "work").mkdir()
    here, trap, pool = Path.cwd(), Trap(), SimulatedPool()
    settings = DriverSettings(store=str(folder / "runs"), **FAST)
    os.chdir(folder / "work")
    try:
        async with Dispatcher(pool, dispatch_settings(settings)) as dispatcher:
            jobs = Jobs(settings, dispatcher)
            made = Site(folder, jobs, pool, trap)
            try:
                yield made
            finally:
                await made.batches.close()
                await jobs.close()
    finally:
        os.chdir(here)
        trap.close()
