"""What a real cluster, of simulated engines, shows to whom: where it listens, and whether secrets stay secret."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc  # type: ignore[import-untyped]
import httpx
import psutil
import pytest
import yaml

from serve_app.serving.gate.key_file import create_key
from serve_app.serving.launch.local import RUN_MARKER, local_server, marked_processes
from serve_app.serving.launch.simulated import simulate
from tests.collector import Collector, collect
from tests.conftest import own_document, served
from tests.dispatch.provider.fakes import Asked, FakeProvider, Reply
from tests.system.kit import dashboard, wait_for

pytestmark = pytest.mark.timeout(400)
# Variables with secrets, of the server's environment.
VARIABLES = (
    "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY", "SERVE_APP_API_KEY", "OTEL_EXPORTER_OTLP_HEADERS", "RAY_REDIS_PASSWORD",
)  # fmt: skip
CHAT = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@dataclass
class Closed:
    """A server with keys, in `folder`. `secrets` by name are marked; `seen` is what it answered."""

    base_url: str
    folder: Path
    provider: str
    secrets: dict[str, str]
    collector: Collector
    seen: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, *, key: str = "client", **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.secrets[key]}", **options.pop("headers", {})}
        answer = httpx.request(method, f"{self.base_url}{path}", headers=headers, timeout=60, **options)
        self.seen.append(f"{answer.headers} {answer.text}")
        return answer


@pytest.fixture(scope="module")
def closed() -> Iterator[Closed]:
    folder = Path(tempfile.mkdtemp(prefix="closed-"))  # paths of sockets below it have at most 107 bytes
    secrets = {name: f"marked-{uuid4().hex}" for name in (*VARIABLES, "wrong", "query", "signature", "password")}
    environment = {name: secrets[name] for name in VARIABLES}
    environment["OTEL_EXPORTER_OTLP_HEADERS"] = f"x-token={secrets['OTEL_EXPORTER_OTLP_HEADERS']}"
    keys = folder / "keys.yaml"
    secrets["client"] = create_key(keys, "client")

    def echo(asked: Asked) -> Reply:  # as providers do
        error = {"message": f"Incorrect API key provided: {asked.authorization.removeprefix('Bearer ')}"}
        return Reply(401, {"error": error})

    document = own_document(folder)
    simulate(document)
    with served(FakeProvider(default=echo), lifespan="off") as provider, collect() as collector:
        for application in document["applications"]:
            access = {"key_files": [str(keys)]}
            batches = application["name"] == "batches"
            application["args"] |= access if batches else {"access": access}
        document["applications"][1]["args"] |= {
            "provider_keys": {"OPENAI_API_KEY": f"{provider}/v1"},
            "source_urls": [f"{provider}/files"],
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        env = {
            **environment, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder), "RAY_DEDUP_LOGS": "0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "500",
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SERVE_APP_API_KEY", secrets["client"])  # by which the start sees that all is ready
            env["SERVE_APP_API_KEY"] = secrets["SERVE_APP_API_KEY"]
            with local_server(folder / "config.yaml", log=folder / "serve.log", env=env) as server:
                yield Closed(server.settings.base_url, folder, provider, secrets, collector)
    shutil.rmtree(folder, ignore_errors=True)


def test_nobody_beyond_this_machine_reaches_a_port(closed: Closed) -> None:
    (serve_run,) = [p for p in psutil.process_iter() if _is_serve_run(p, str(closed.folder))]
    listening = {}
    for process in marked_processes(serve_run.environ()[RUN_MARKER]):
        with suppress(psutil.Error):
            for one in process.net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN:
                    listening[one.laddr] = " ".join(process.cmdline())[:100].strip()
    assert int(closed.base_url.rpartition(":")[2]) in {address.port for address in listening}
    assert len(listening) > 5
    wide = {address: what for address, what in listening.items() if not _is_loopback(address.ip)}
    # Ray 2.60 has each replica's own gRPC server on all addresses, and asks for the cluster's token there.
    assert {what for what in wide.values() if not what.startswith("ray::ServeReplica:")} == set()
    for address in wide:
        with grpc.insecure_channel(f"127.0.0.1:{address.port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def _is_loopback(ip: str) -> bool:
    return ip_address(ip.removeprefix("::ffff:")).is_loopback


def _is_serve_run(process: psutil.Process, folder: str) -> bool:
    with suppress(psutil.Error):
        return "run" in process.cmdline() and any(folder in part for part in process.cmdline())
    return False


def test_no_secret_is_in_an_answer_a_log_a_job_a_metric_or_a_trace(closed: Closed) -> None:
    _use(closed)
    wait_for("traces", lambda: bool(closed.collector.spans), 30)
    time.sleep(1.5)  # for Ray to write its logs down
    places = {"answers": "\n".join(closed.seen).encode(), "traces": repr(closed.collector.spans).encode()}
    for path in closed.folder.rglob("*"):
        if path.is_file() and path.name not in ("config.yaml", "keys.yaml"):
            places[str(path.relative_to(closed.folder))] = path.read_bytes()
    assert any("serve.log" in place for place in places)
    assert any("/logs/serve/" in place for place in places)
    assert any(place.startswith("runs/") for place in places)
    found = [(name, place) for name, value in closed.secrets.items() for place, text in places.items()
             if value.encode() in text]  # fmt: skip
    assert found == []


def _use(closed: Closed) -> None:
    """Ask for everything, rightly and wrongly, with all secrets that a client has."""
    assert closed.ask("POST", "/v1/chat/completions", json=CHAT).is_success
    assert closed.ask("POST", "/v1/chat/completions", json={**CHAT, "stream": True}).is_success
    assert closed.ask("POST", "/v1/chat/completions", json={**CHAT, "temperature": "hot"}).status_code == 400
    assert closed.ask("POST", "/v1/chat/completions", content=b"{").status_code == 400
    for path in ("/v1/models", "/v1/populations", "/v1/files", "/v1/batches", "/metrics", "/nothing"):
        closed.ask("GET", path)
        closed.ask("GET", path, headers={"x-api-key": closed.secrets["client"]})
        assert closed.ask("GET", path, key="wrong").status_code == 401
        assert closed.ask("GET", f"{path}?api_key={closed.secrets['query']}", key="wrong").status_code == 401
    provider = {"base_url": f"{closed.provider}/v1", "model": "m", "api_key_env": "OPENAI_API_KEY", "max_retries": 0}
    rows = [{"prompt": "x"}]
    job_id = closed.ask("POST", "/v1/populations", json={"rows": rows, "provider": provider}).json()["id"]
    wait_for("the provider's refusal", lambda: _state(closed, job_id) == "failed", 60)
    assert "[key]" in closed.ask("GET", f"/v1/populations/{job_id}").json()["message"]
    closed.ask("GET", f"/v1/populations/{job_id}/results")
    signed = f"{closed.provider}/files/rows.csv?X-Amz-Signature={closed.secrets['signature']}"
    for source in (signed, f"s3://me:{closed.secrets['password']}@bucket/rows.csv"):
        refused = closed.ask("POST", "/v1/populations", json={"source": source, "prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "source")
    done = closed.ask("POST", "/v1/populations", json={"rows": rows}).json()["id"]
    wait_for("a job's end", lambda: _state(closed, done) == "completed", 60)
    pages = dashboard(closed.folder / "serve.log")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    headers = {"authorization": f"Bearer {token.read_text().strip()}"} if token.is_file() else {}
    for path in ("/api/serve/applications/", "/api/jobs/", "/nodes?view=summary"):
        answer = httpx.get(f"{pages}{path}", headers=headers, timeout=30)
        closed.seen.append(answer.text)
        assert answer.is_success or "serve" not in path, answer.text


def _state(closed: Closed, job_id: str) -> str:
    return str(closed.ask("GET", f"/v1/populations/{job_id}").json()["state"])
