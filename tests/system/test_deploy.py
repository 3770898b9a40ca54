"""A cluster is updated and scaled down under load: no request is refused, no stream is cut, no row is lost.

Real Serve and the shipped deployment with its own settings; only the engine's application is another, which streams
without an engine.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import psutil
import pytest
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from ray.serve import Application

from serve_app.client.populations import PopulationClient
from serve_app.serving import apps, replica
from serve_app.serving.launch.local import local_serve
from serve_app.settings import ReplicaSettings
from serve_app.spec import JobSpec
from tests.conftest import ROOT, unused_port
from tests.system.kit import dashboard

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
TOKEN_S = 0.1
# Longer than what Serve grants a replica that stops: 20 s by default, and 35 s behind HAProxy.
LONG_TOKENS = 700
SHORT_TOKENS = (3, 10, 25, 100)


# --- what runs in the cluster ---

SHIPPED: Any = replica.Replica


class StreamingReplica(SHIPPED.func_or_class):
    """The shipped replica, whose application gives a token each TOKEN_S."""

    async def __init__(self, settings: ReplicaSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            if not body["stream"]:
                await asyncio.sleep(TOKEN_S)
                return Response(self._replica_id)
            return StreamingResponse(self._tokens(body["max_tokens"]), media_type="text/event-stream")

        return app

    async def _tokens(self, count: int) -> AsyncIterator[str]:
        for _ in range(count):
            yield f"data: {self._replica_id}\n\n"
            await asyncio.sleep(TOKEN_S)
        yield "data: [DONE]\n\n"


def replicas(args: ReplicaSettings) -> Application:
    """What `import_path` names here."""
    with patch.object(replica, "Replica", SHIPPED.options(func_or_class=StreamingReplica)):
        return apps.replicas(args)


CONFIG: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "http_options": {"host": "127.0.0.1"},
    "applications": [
        {
            "name": "replicas",
            "route_prefix": "/",
            "import_path": "tests.system.test_deploy:replicas",
            "args": {
                "engine": {"served_model_name": "sim", "tensor_parallel_size": 2},
                "simulated": {"step_ms": 5, "prefill_ms_per_token": 0.1},
            },
            "deployments": [
                {
                    "name": "Replica",
                    "num_replicas": 2,
                    "graceful_shutdown_timeout_s": 600,
                    "ray_actor_options": {"num_cpus": 0},
                }
            ],
        },
        {
            "name": "populations",
            "route_prefix": "/v1/populations",
            "import_path": "serve_app.serving.apps:populations",
            "args": {},
            "deployments": [{"name": "Driver"}],
        },
    ],
}


@dataclass
class Cluster:
    base_url: str
    folder: Path
    dashboard: str
    client: PopulationClient

    def replicas(self) -> dict[str, int]:
        """Process of each running replica, by its id."""
        return {found.replica_id: found.pid for found in self.client.replicas()}

    def deploy(self, *, replicas: int, step_ms: float, **options: Any) -> int:
        """`serve deploy` a changed config, until only what it asks for runs; the fewest replicas meanwhile.

        Another `step_ms` is another argument of the application, and so an update of every replica.
        """
        before, started = self.replicas(), time.monotonic()
        application = CONFIG["applications"][0]
        updates = application["args"]["simulated"]["step_ms"] != step_ms
        application["args"]["simulated"]["step_ms"] = step_ms
        application["deployments"][0].update(num_replicas=replicas, **options)
        path = self.folder / "changed.yaml"
        path.write_text(yaml.safe_dump(CONFIG))
        command = [str(Path(sys.executable).with_name("serve")), "deploy", str(path), "--address", self.dashboard]
        # A cluster that `serve run` starts asks for the token in the user's home; the command sends it only if told.
        subprocess.run(command, env={**os.environ, "RAY_AUTH_MODE": "token"}, check=True, timeout=60)
        fewest = len(before)
        while True:
            now = self.replicas()
            fewest = min(fewest, len(now))
            gone = {pid for name, pid in before.items() if name not in now}
            replaced = not updates or not before.keys() & now.keys()
            if len(now) == replicas and replaced and not any(map(psutil.pid_exists, gone)):
                print(f"done in {time.monotonic() - started:.0f} s, never fewer than {fewest} replicas")
                return fewest
            assert time.monotonic() - started < 240, f"{len(now)} of {replicas} replicas, {len(gone)} are to go"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("deploy")
    CONFIG["http_options"]["port"] = unused_port()
    CONFIG["applications"][1]["args"]["store"] = str(folder / "runs")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    log = folder / "serve.log"
    # Ray's processes import this module by the same name.
    with local_serve(folder / "config.yaml", log=log, on_wait=print, env={"PYTHONPATH": str(ROOT)}) as base_url:
        yield Cluster(base_url, folder, dashboard(log), PopulationClient(base_url))


# --- the load ---


@dataclass
class Load:
    """Clients that ask without a pause, each as soon as it was answered."""

    base_url: str
    long_tokens: int
    streams: int = 0
    long_streams: int = 0
    requests: int = 0
    slowest_first_byte_s: float = 0.0
    servers: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    _stopping: bool = False

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.base_url, timeout=120, limits=limits, trust_env=False) as client:
            short = (self._repeat(self._stream, client, SHORT_TOKENS[i % len(SHORT_TOKENS)]) for i in range(16))
            long = (self._repeat(self._stream, client, self.long_tokens) for _ in range(3))
            whole = (self._repeat(self._ask, client, 1) for _ in range(6))
            await asyncio.gather(*short, *long, *whole)

    async def _repeat(self, one: Any, client: httpx.AsyncClient, tokens: int) -> None:
        while not self._stopping:
            started = time.monotonic()
            try:
                await one(client, tokens, started)
            except (httpx.HTTPError, AssertionError) as error:
                self.problems.append(f"{tokens} tokens, after {time.monotonic() - started:.1f} s: {error!r}")

    async def _ask(self, client: httpx.AsyncClient, tokens: int, started: float) -> None:
        answer = await client.post("/v1/chat/completions", json={"stream": False, "max_tokens": tokens})
        self._answered(answer.status_code, started)
        self.servers.add(answer.text)
        self.requests += 1

    async def _stream(self, client: httpx.AsyncClient, tokens: int, started: float) -> None:
        body = {"stream": True, "max_tokens": tokens}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            self._answered(answer.status_code, started)
            lines = [line async for line in answer.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]", f"cut after {len(lines)} tokens"
        assert len(lines) == tokens + 1
        assert len(set(lines)) == 2  # one replica, and the end
        self.servers.add(lines[0].removeprefix("data: "))
        if tokens == self.long_tokens:
            self.long_streams += 1
        else:
            self.streams += 1

    def _answered(self, status: int, started: float) -> None:
        assert status == 200, f"HTTP {status}"
        self.slowest_first_byte_s = max(self.slowest_first_byte_s, time.monotonic() - started)

    def stop(self) -> None:
        """No client asks again; what is open goes on to its end."""
        self._stopping = True


@contextmanager
def load(cluster: Cluster, long_tokens: int = 200) -> Iterator[Load]:
    clients = Load(cluster.base_url, long_tokens)
    thread = threading.Thread(target=asyncio.run, args=(clients.run(),))
    thread.start()
    try:
        time.sleep(3)  # so that streams of all lengths are open when the block begins
        yield clients
    finally:
        clients.stop()
        thread.join()
    print(
        f"{clients.streams} streams, {clients.long_streams} of {long_tokens * TOKEN_S:g} s, {clients.requests} whole "
        f"answers by {len(clients.servers)} replicas, slowest first byte {clients.slowest_first_byte_s:.2f} s, "
        f"{len(clients.problems)} problems"
    )
    assert clients.problems == []
    assert clients.long_streams >= 3
    assert clients.streams > 100


# --- the tests ---


def test_an_update_of_two_replicas_refuses_no_request_cuts_no_stream_and_loses_no_row(cluster: Cluster) -> None:
    people = cluster.folder / "people.csv"
    people.write_text("custom_id,name\n" + "".join(f"p{i},Person {i}\n" for i in range(20_000)))
    with load(cluster, LONG_TOKENS) as clients:
        job_id = cluster.client.upload(JobSpec(source=str(people), prompt="Who is {name}?", labels=("Yes", "No")))
        assert cluster.deploy(replicas=2, step_ms=6) >= 1
    assert len(clients.servers) >= 4
    status = cluster.client.wait(job_id)
    assert (status.state, status.ok, status.failed) == ("completed", 20_000, 0)
    found = [outcome.custom_id for outcome in cluster.client.outcomes(job_id)]
    assert sorted(found) == sorted(f"p{i}" for i in range(20_000))


def test_a_scale_down_refuses_no_request_and_cuts_no_stream(cluster: Cluster) -> None:
    with load(cluster) as clients:
        cluster.deploy(replicas=1, step_ms=6)
    assert len(clients.servers) == 2


def test_a_lone_replica_goes_only_when_the_next_one_runs_if_there_may_be_a_second(cluster: Cluster) -> None:
    with load(cluster) as clients:
        assert cluster.deploy(replicas=1, step_ms=7, max_surge_percent=100) == 1
    assert len(clients.servers) == 2


def test_a_lone_replica_goes_first_otherwise_and_requests_wait_for_the_next_one(cluster: Cluster) -> None:
    with load(cluster) as clients:
        assert cluster.deploy(replicas=1, step_ms=8, max_surge_percent=0) == 0
    assert len(clients.servers) == 2
