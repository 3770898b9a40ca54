"""A real S3 server (moto) behind a relay that delays what it carries, and refuses and drops connections for a while."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

BUCKET = "runs"


class FlakyStore:
    """Context manager, on loopback, with one bucket. `delay_s` is the time that each message of a client waits."""

    delay_s = 0.0

    def __enter__(self) -> FlakyStore:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs each request
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()
        self._loop = asyncio.new_event_loop()
        self._cut_until = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        relay = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._relay, "127.0.0.1", 0), self._loop).result()
        self._relay_port = relay.sockets[0].getsockname()[1]
        # moto takes any key.
        os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_EC2_METADATA_DISABLED="true")
        from pyarrow.fs import S3FileSystem

        S3FileSystem(
            endpoint_override=f"127.0.0.1:{self._port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        ).create_dir(BUCKET)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.stop()

    def url(self, folder: str) -> str:
        """A folder in the bucket."""
        return _url(folder, self._relay_port)

    def direct_url(self, folder: str) -> str:
        """The same without the relay."""
        return _url(folder, self._port)

    def cut(self, seconds: float) -> None:
        """Drop all connections, in the middle of whatever they carry, and refuse new ones for so long."""
        self._cut_until = time.monotonic() + seconds
        self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if time.monotonic() < self._cut_until:
            writer.transport.abort()
            return
        self._open.add(writer)
        with suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(self._copy_slowly(reader, inner_writer), _copy(inner_reader, writer))
        self._open.discard(writer)
        writer.close()

    async def _copy_slowly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _copy(reader, writer, lambda: asyncio.sleep(self.delay_s))


def _url(folder: str, port: int) -> str:
    return f"s3://{BUCKET}/{folder}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


async def _no_pause() -> None:
    """Before each block, where nothing is delayed."""


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: Callable[[], Awaitable[None]] = _no_pause
) -> None:
    with suppress(OSError):
        while block := await reader.read(1 << 16):
            await pause()
            writer.write(block)
            await writer.drain()
    writer.close()
