"""Slow, endless and broken HTTP at a local uvicorn: what no ASGI application sees, and what it is left with."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from tests.abuse.junk import Junk
from tests.abuse.ledger import Ledger

# Until the server has answered, closed, or is left waiting; and a good request's answer.
PATIENCE_S, BOUND_S = 0.3, 5.0
# Connections that send a byte now and then while good requests are answered.
SLOW = 200
POST = b"POST /v1/populations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=m\r\n"
FORM = b'--m\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
CASES: dict[str, Callable[[Junk], bytes]] = {
    "headers flood": lambda junk: GET + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 50) for i in range(20_000)),
    "long header": lambda junk: GET + b"X: " + b"a" * 2_000_000 + b"\r\n\r\n",
    "long line": lambda junk: b"GET /" + b"a" * 500_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "bad chunks": lambda junk: POST + b"Transfer-Encoding: chunked\r\n\r\n" + junk.pick(
        b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n", b"f" * 100 + b"\r\n{}", b"2\r\n{}{}{}\r\n0\r\n\r\n",
        b"2;" + b"a" * 90_000,
        b"0x2\r\n{}\r\n0\r\n\r\n", b"2\n{}\n0\n\n", b"2\r\n{}\r\n0\r\nX: y\r\n" + b"T: a\r\n" * 5000),
    "bad length": lambda junk: POST + b"Content-Length: " + junk.pick(b"-1", b"9" * 40, b"2, 2", b"+2", b"2x", b"",
    b"0x2")
    + b"\r\n\r\n{}",
    "smuggling": lambda junk: POST + junk.pick(
        b"Content-Length: 2\r\nTransfer-Encoding: chunked", b"Content-Length: 2\r\nContent-Length: 30",
        b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked")
    + b"\r\n\r\n0\r\n\r\nGET /v1/files HTTP/1.1\r\nHost: a\r\n\r\n",
    "half a body": lambda junk: POST + b"Content-Length: 1000\r\n\r\n" + b'{"rows": [',
    "half a form": lambda junk: UPLOAD + b"Content-Length: 100000\r\n\r\n" + FORM + junk.bytes(),
    "half a head": lambda junk: POST[: junk.random.randint(1, len(POST))],
    "no HTTP": lambda junk: junk.pick(b"\x16\x03\x01\x02\x00\x01" + junk.bytes(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                                      junk.bytes() + b"\r\n\r\n", b"GET /\r\n\r\n", b"\x00" * 4096, b"\r\n" * 5000),
    "bad head": lambda junk: junk.pick(b"GET / HTTP/9.9", b"GET  / HTTP/1.1", b"GET / HTTP/1.1\r\nHost",
    b"G\x00T / HTTP/1.1",
                                       b"GET http://a/ HTTP/1.1\r\n :", b"GET /\xff\xfe HTTP/1.1", b"GET * HTTP/1.1",
                                       b"GET /%zz%00 HTTP/1.1", b"CONNECT a:80 HTTP/1.1", b"GET / HTTP/1.1\r\nX: \x00")
    + b"\r\nHost: localhost\r\n\r\n",
    "pipelined": lambda junk: (GET + b"\r\n") * 200,
    "upgrade": lambda junk: GET + b"Connection: Upgrade\r\nUpgrade: " + junk.pick(b"websocket", b"h2c",
    b"\x00") + b"\r\n\r\n",
    "expects": lambda junk: POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
}  # fmt: skip


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[int]:
    """The port of a uvicorn that serves the application in this loop."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        config = uvicorn.Config(app, log_config=None, interface="asgi3", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running


async def break_http(app: Any, ledger: Ledger, *, seed: int, inputs: int) -> None:
    """Send `inputs` broken requests, then keep many slow ones open; the server answers a good one after each round."""
    async with listening(app) as port:
        for number in range(inputs):
            junk = Junk(f"{seed}:socket:{number}", "", 9)
            name = junk.pick(*CASES)
            ledger.routes[f"socket, {name}"] += 1
            answer = await _send(port, CASES[name](junk), junk.pick("close", "half", "reset"))
            if answer.startswith(b"HTTP/1.1 5"):
                ledger.fail(f"socket, {name}", "5xx", f"socket:{number}", answer[:500])
            if number % 50 == 49 or number == inputs - 1:
                await _good(port, ledger, f"socket:{number}")
        await _slowly(port, ledger)


async def _send(port: int, content: bytes, end: str) -> bytes:
    """What was answered to the bytes; the connection is then closed, half closed (nothing more is sent) or reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with contextlib.suppress(OSError):
        writer.write(content)
        await asyncio.wait_for(writer.drain(), BOUND_S)
        if end == "half":
            writer.write_eof()
        if end == "reset":
            writer.transport.abort()
        with contextlib.suppress(TimeoutError):
            answer = await asyncio.wait_for(reader.read(65536), PATIENCE_S)
    writer.close()
    return answer


async def _good(port: int, ledger: Ledger, case: str) -> None:
    try:
        async with asyncio.timeout(BOUND_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET + b"Connection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError) as error:
        answer = repr(error).encode()
    if not answer.startswith(b"HTTP/1.1 200"):
        ledger.fail("good requests", "dead", case, answer[:300])


async def _slowly(port: int, ledger: Ledger) -> None:
    """Slow loris: many connections, each an endless head or body."""
    ledger.routes["socket, slow loris"] += SLOW
    begun = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SLOW)]
    for number, (_, writer) in enumerate(begun):
        writer.write(GET if number % 2 else POST + b"Content-Length: 100000\r\n\r\n")
    for _ in range(5):
        for _, writer in begun:
            with contextlib.suppress(OSError):
                writer.write(b"X")
        await _good(port, ledger, "slow loris")
    for _, writer in begun:
        writer.transport.abort()
    await _good(port, ledger, "after slow loris")
