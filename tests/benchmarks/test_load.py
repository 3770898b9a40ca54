"""The load generator over real sockets, and servers that stand beside each other."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from benchmarks.load import (
    Load,
    generate,
    prompts,
    run,
)
from benchmarks.peers import Case
from benchmarks.peers.vllm_serve import HttpServer
from serve_app.errors import ServerUnavailable
from tests.benchmarks.kit import USAGE, chunk, ending

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# --- the load generator on a real socket ---


@asynccontextmanager
async def serving(handler: Handler, port: int) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_a_closed_loop_keeps_its_concurrency_open_and_asks_each_prompt_once(free_port: int) -> None:
    open_now, most, asked = 0, 0, []
    full = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal open_now, most
        asked.append((await request.json())["messages"][1]["content"])
        open_now += 1
        most = max(most, open_now)
        if open_now == 4:
            full.set()
        await full.wait()  # for ever, where fewer are open at once
        open_now -= 1
        return web.json_response({"usage": USAGE})

    async with serving(handler, free_port) as url:
        texts = prompts(20, "closed")
        result = await generate(Load(url, "m", texts, 1, stream=False, concurrency=4))
    assert most == 4
    assert sorted(asked) == sorted(texts)
    assert [one.error for one in result.answers] == [""] * 20


async def test_an_open_loop_does_not_wait_for_answers(free_port: int) -> None:
    arrived = 0
    all_here = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal arrived
        arrived += 1
        if arrived == 10:
            all_here.set()
        await all_here.wait()  # for ever, where a request waits for an answer to another
        return web.json_response({"usage": USAGE})

    async with serving(handler, free_port) as url:
        result = await generate(Load(url, "m", prompts(10, "open"), 1, stream=False, request_rate=200.0))
    assert [one.error for one in result.answers] == [""] * 10
    sent = [one.sent_s for one in result.answers]
    assert all(0.005 * i <= at for i, at in enumerate(sent))


async def test_the_generator_in_its_own_process_reads_streams_and_tells_errors(free_port: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert body["stream_options"] == {"include_usage": True}
        if body["messages"][1]["content"] == "refuse":
            return web.Response(status=503, text="busy")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in (chunk(""), chunk("a"), chunk("b"), ending()):
            await response.write(part)
        return response

    async with serving(handler, free_port) as url:
        load = Load(url, "m", ["answer", "refuse"], 2, stream=True, concurrency=1)
        result = await asyncio.to_thread(run, load)
    answered, refused = result.answers
    assert (answered.completion_tokens, answered.cached_tokens, len(answered.chunks_s)) == (2, 32, 2)
    assert answered.sent_s < answered.chunks_s[0] <= answered.chunks_s[1] <= answered.done_s
    assert refused.error == "503: busy"


# --- servers as processes ---

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
CASE = Case("m", {"tensor_parallel_size": 2}, (), ())


def soon(seen: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5.0
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.01)  # the kernel stops a process at its next turn
    return seen()


def test_a_server_is_frozen_between_its_passes_and_gone_at_the_end(free_port: int, tmp_path: Path) -> None:
    server = HttpServer([sys.executable, "-c", SERVER, str(free_port)], CASE, port=free_port, log=tmp_path / "log")
    try:
        server.start()
        (process,) = [one for one in psutil.Process().children() if str(free_port) in one.cmdline()]
        server.freeze()
        assert soon(lambda: process.status() == psutil.STATUS_STOPPED)
        server.thaw()
        assert soon(lambda: process.status() != psutil.STATUS_STOPPED)
        server.freeze()
    finally:
        server.stop()
        server.stop()
    assert not process.is_running()


def test_a_server_that_ends_at_once_names_its_log(free_port: int, tmp_path: Path) -> None:
    server = HttpServer([sys.executable, "-c", "raise SystemExit(3)"], CASE, port=free_port, log=tmp_path / "log")
    try:
        with pytest.raises(ServerUnavailable, match=str(tmp_path / "log")):
            server.start()
    finally:
        server.stop()
