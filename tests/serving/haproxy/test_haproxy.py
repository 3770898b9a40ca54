"""Real HAProxy before servers that are made up, by the file that Ray Serve's own code writes."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from aiohttp import web
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, HAProxyManager, ServerConfig
from ray.serve.config import HTTPOptions

from serve_app.serving.haproxy import configuration
from serve_app.serving.haproxy.configuration import complete, routing_variable
from serve_app.serving.haproxy.environment import HAPROXY
from serve_app.settings import ROUTING_ENV, RoutingSettings
from tests.conftest import unused_port

WRAPPER = Path(sys.executable).with_name("serve-app-haproxy")
SERVERS = 3
HANGS, STREAM = "/hangs", "/stream"


class Server:
    """Answers with its number, or holds requests to HANGS until it is released."""

    def __init__(self, number: int) -> None:
        self.number, self.port = number, unused_port()
        self.released = asyncio.Event()
        self.open = self.sent_bytes = 0
        self.left = False
        app = web.Application()
        app.router.add_get(STREAM, self._stream)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == HANGS:
            self.open += 1
            await self.released.wait()
        return web.Response(text=str(self.number))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Without end, as fast as it is read."""
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(100_000))
                self.sent_bytes += 100_000
        finally:
            self.left = True

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        self.released.set()
        await self._runner.cleanup()


class Ingress:
    def __init__(self, folder: Path, servers: list[Server]) -> None:
        self.servers, self.port = servers, unused_port()
        self.last: subprocess.Popen[bytes]
        self.config = folder / "haproxy.cfg"
        cfg = HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=self.port),
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "state"),
            metrics_socket_path=str(folder / "metrics.sock"),
            is_head=True,
            health_check_inter="100ms",
            observe_error_limit=int(HAPROXY["RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT"]),
            retries=int(HAPROXY["RAY_SERVE_HAPROXY_RETRIES"]),
        )
        self.fallback: Server | None = None
        self.api = HAProxyApi(cfg, config_file_path=str(self.config))
        self.write()

    @asynccontextmanager
    async def reloaded(self) -> AsyncIterator[None]:
        """A new process, which takes the port over and tells the last one to end, and has seen all servers up."""
        self.write()
        last = str(self.last.pid)
        self.last = start(self.config, {}, "-sf", last, "-x", str(self.config.with_name("admin.sock")))
        with killed_at_the_end(self.last):
            async with asyncio.timeout(20):
                while await self.api._get_running_pid() != self.last.pid or not await self._all_up():
                    await asyncio.sleep(0.05)
            yield

    async def _all_up(self) -> bool:
        stats = (await self.api.get_all_stats())["http-replicas"].values()
        return len(stats) == len(self.servers) + (self.fallback is not None) and all(one.is_up for one in stats)

    def write(self) -> None:
        """As Serve does before each start."""
        self.api.set_backend_configs({"http-replicas": self.backend()})
        self.api._generate_config_file_internal()

    def backend(self) -> BackendConfig:
        named = [(f"SERVE_REPLICA::replicas#Replica#r{one.number}", one.port) for one in self.servers]
        servers = [ServerConfig(HAProxyManager.get_safe_name(name), "127.0.0.1", port) for name, port in named]
        last = self.fallback and ServerConfig("SERVE_PROXY_ACTOR-fallback", "127.0.0.1", self.fallback.port)
        return BackendConfig("http-replicas", "/", servers=servers, app_name="replicas", fallback_server=last)


@asynccontextmanager
async def running(
    folder: Path, count: int = SERVERS, **routing: object
) -> AsyncIterator[tuple[Ingress, httpx.AsyncClient]]:
    servers = [Server(number) for number in range(count)]
    ingress = Ingress(folder, servers)
    for server in servers:
        await server.start()
    ingress.last = start(ingress.config, {"replicas": RoutingSettings.model_validate(routing)})
    with killed_at_the_end(ingress.last):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ingress.port}", trust_env=False) as client:
            await answers(client, folder)
            yield ingress, client
    for server in servers:
        await server.stop()


@contextmanager
def killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def start(config: Path, settings: dict[str, RoutingSettings], *more: str) -> subprocess.Popen[bytes]:
    """As Serve does."""
    env = {**os.environ, ROUTING_ENV: routing_variable(settings), "RAY_SERVE_HAPROXY_BINARY_PATH": str(WRAPPER)}
    with open(config.with_name("stderr"), "ab") as stderr:
        return subprocess.Popen([str(WRAPPER), "-db", "-f", str(config), "-dR", *more], env=env, stderr=stderr)


async def answers(client: httpx.AsyncClient, folder: Path) -> None:
    for _ in range(100):
        try:
            if (await client.get("/")).status_code == 200:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.1)
    pytest.fail((folder / "stderr").read_text())


async def ask(client: httpx.AsyncClient, session: str = "", path: str = "/") -> str:
    answer = await client.get(path, headers={"x-session-id": session} if session else {})
    assert answer.status_code == 200
    return answer.text


async def test_a_session_stays_with_its_replica_and_sessions_spread_over_all(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        found = {f"s{n}": [await ask(client, f"s{n}") for _ in range(3)] for n in range(60)}
    assert all(len(set(names)) == 1 for names in found.values())
    counts = Counter(names[0] for names in found.values())
    assert len(counts) == SERVERS
    assert min(counts.values()) > 60 / SERVERS / 3


async def test_a_replica_that_goes_takes_only_its_own_sessions_along(tmp_path: Path) -> None:
    sessions = [f"s{n}" for n in range(40)]
    async with running(tmp_path) as (ingress, client):
        before = {session: await ask(client, session) for session in sessions}
        await ingress.servers[0].stop()
        after = {session: await ask(client, session) for session in sessions}
    assert {after[session] for session in sessions} == {"1", "2"}
    stayed = [session for session in sessions if before[session] != "0"]
    assert [after[session] for session in stayed] == [before[session] for session in stayed]


async def test_a_session_leaves_a_replica_that_is_much_busier_than_the_others(tmp_path: Path) -> None:
    async with running(tmp_path, session_slack_requests=4) as (ingress, client):
        home = ingress.servers[int(await ask(client, "busy"))]
        held = [asyncio.create_task(ask(client, "busy", HANGS)) for _ in range(4)]
        while home.open < 4:
            await asyncio.sleep(0.01)
        assert await ask(client, "busy") == str(home.number)  # four are not more than the slack
        held += [asyncio.create_task(ask(client, "busy", HANGS))]
        while home.open < 5:
            await asyncio.sleep(0.01)
        assert await ask(client, "busy") != str(home.number)
        for server in ingress.servers:
            server.released.set()
        await asyncio.gather(*held)


async def test_without_affinity_the_least_busy_replica_answers_whatever_the_session(tmp_path: Path) -> None:
    async with running(tmp_path, session_affinity=False) as (_, client):
        found = Counter([await ask(client, "s") for _ in range(30)])
    assert len(found) == SERVERS


async def test_a_connection_to_the_haproxy_of_before_a_reload_reaches_the_replicas_of_now(tmp_path: Path) -> None:
    async with running(tmp_path) as (ingress, client):
        ingress.fallback = Server(9)
        await ingress.fallback.start()
        async with ingress.reloaded():
            for _ in range(2):
                await ask(client)  # on a connection to the first one, which ends, and on one to this one, which stays
            before, ingress.servers = ingress.servers, [Server(3), Server(4)]
            for server in ingress.servers:
                await server.start()
            async with ingress.reloaded():
                for server in before:
                    await server.stop()
                assert await ask(client) == "9", "Serve's proxy"
                assert await ask(client) in ("3", "4"), "the connection ended with that answer"
        for server in (*ingress.servers, ingress.fallback):
            await server.stop()


async def test_a_file_that_is_completed_is_left_as_it_is(tmp_path: Path) -> None:
    config = Ingress(tmp_path, [Server(0), Server(1)]).config
    complete(config)
    once = config.read_text()
    complete(config)
    assert config.read_text() == once


async def test_a_client_that_does_not_read_holds_the_replica_back_and_one_that_leaves_is_seen_at_once(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, count=1) as (ingress, client):
        (server,) = ingress.servers
        async with client.stream("GET", STREAM) as answer:
            assert answer.status_code == 200
            while not server.sent_bytes:
                await asyncio.sleep(0.01)
            await asyncio.sleep(1)
            held = server.sent_bytes
            await asyncio.sleep(1)
            assert server.sent_bytes == held < 30_000_000
            assert not server.left
        async with asyncio.timeout(2):
            while not server.left:
                await asyncio.sleep(0.01)


async def test_a_replica_that_closes_after_an_answer_as_it_stops_loses_no_request_that_follows(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readuntil(b"\r\n")).strip():
            pass
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        await asyncio.sleep(0.01)  # the next request comes meanwhile
        writer.close()

    ingress = Ingress(tmp_path, [Server(0)])
    ingress.last = start(ingress.config, {})
    async with await asyncio.start_server(answer, "127.0.0.1", ingress.servers[0].port):
        with killed_at_the_end(ingress.last):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ingress.port}", trust_env=False) as client:
                await answers(client, tmp_path)
                assert [(await client.get("/")).status_code for _ in range(30)] == [200] * 30


async def test_where_no_replica_answers_clients_get_openais_error_that_asks_to_come_again(tmp_path: Path) -> None:
    async with running(tmp_path, count=1) as (ingress, client):
        await ingress.servers[0].stop()
        answer = await client.post("/v1/chat/completions", json={})
        openai_client = openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError):
            await openai_client.models.list()
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"
    assert int(answer.headers["retry-after"]) >= 1


async def test_nothing_listens_but_the_http_port_and_the_socket_is_this_users(tmp_path: Path) -> None:
    async with running(tmp_path) as (ingress, _):
        (process,) = (one for one in psutil.Process().children() if one.name() == "haproxy")
        listening = {(at.laddr.ip, at.laddr.port) for at in process.net_connections() if at.status == "LISTEN"}
        assert listening == {("127.0.0.1", ingress.port)}
        assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600


@pytest.mark.parametrize("part", ["listen stats", "mode 666", "errorfile 503", configuration.RULES, "defaults\n"])
def test_a_file_of_another_form_is_refused(tmp_path: Path, part: str) -> None:
    config = Ingress(tmp_path, [Server(0)]).config
    config.write_text(config.read_text().replace(part, "something else\n"))
    with pytest.raises(ValueError, match="Ray Serve's configuration of HAProxy has"):
        complete(config)
