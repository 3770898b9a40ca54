"""Where a provider may be."""

import asyncio
import gzip
from typing import Any

import pytest

from serve_app.addresses import PUBLIC, Reach
from serve_app.dispatch.provider.connect import MOST_ANSWER_BYTES
from serve_app.dispatch.provider.pool import ProviderPool
from serve_app.errors import BadSettings
from serve_app.spec import Provider
from tests.conftest import served
from tests.dispatch.provider.fakes import FakeProvider, chat, reach_of, run


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_a_provider_of_this_machine_is_asked_only_where_the_operator_named_it(host: str) -> None:
    app = FakeProvider()
    with served(app, lifespan="off") as url:
        spec = Provider(base_url=f"{url.replace('127.0.0.1', host)}/v1", model="m")
        async with ProviderPool(spec, reach=PUBLIC) as pool:
            with pytest.raises(BadSettings, match=r"provider.base_url: .* is no public address"):
                await run(pool, chat("hello"))
            assert not await pool.replicas()  # it will not do later either
    assert app.asked == []


async def test_the_address_that_was_looked_up_is_the_one_that_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    app, answers = FakeProvider(), ["127.0.0.1"]

    async def look_up(self: Any, host: str, port: int, **_: Any) -> Any:
        return [(0, 0, 0, "", (answers.pop(0), port))]

    with served(app, lifespan="off") as url:
        port = int(url.rpartition(":")[2])
        named = f"http://provider.example:{port}"
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
        async with ProviderPool(Provider(base_url=f"{named}/v1", model="m"), reach=reach_of(named)) as pool:
            (completion,) = await run(pool, chat("hello"))
        assert completion.text == "HELLO"
        answers[:] = ["169.254.169.254"]
        async with ProviderPool(Provider(base_url=f"{named}/v1", model="m"), reach=reach_of(named)) as pool:
            with pytest.raises(BadSettings, match="metadata"):
                await run(pool, chat("hello"))
    assert len(app.asked) == 1


async def test_another_address_of_the_host_is_tried_where_one_is_not_there(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    app = FakeProvider()

    async def look_up(self: Any, host: str, port: int, **_: Any) -> Any:
        return [(0, 0, 0, "", ("::1", port, 0, 0)), (0, 0, 0, "", ("127.0.0.1", port))]

    with served(app, lifespan="off") as url:
        named = f"http://provider.example:{url.rpartition(':')[2]}"
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
        async with ProviderPool(Provider(base_url=f"{named}/v1", model="m"), reach=Reach.of([named], "")) as pool:
            (completion,) = await run(pool, chat("hello"))
    assert completion.text == "HELLO"


async def test_an_answer_without_an_end_is_not_kept() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b" " * (1 << 20), "more_body": True})

    with served(endless, lifespan="off") as url:
        spec = Provider(base_url=f"{url}/v1", model="m", max_retries=0)
        async with ProviderPool(spec, reach=reach_of(url)) as pool:
            (completion,) = await run(pool, chat("hello"))
    assert completion.status == "failed"
    assert f"larger than {MOST_ANSWER_BYTES >> 20} MiB" in str(completion.error)


async def test_a_compressed_answer_is_read() -> None:
    app = FakeProvider()

    async def compressed(scope: Any, receive: Any, send: Any) -> None:
        async def packed(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name != b"content-length"]
                message = {**message, "headers": [*kept, (b"content-encoding", b"gzip")]}
            else:
                message = {**message, "body": gzip.compress(message["body"])}
            await send(message)

        await app(scope, receive, packed)

    with served(compressed, lifespan="off") as url:
        async with ProviderPool(Provider(base_url=f"{url}/v1", model="m"), reach=reach_of(url)) as pool:
            (completion,) = await run(pool, chat("hello"))
    assert completion.text == "HELLO"
