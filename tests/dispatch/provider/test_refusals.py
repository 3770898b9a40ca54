"""A provider that refuses all work, keys and addresses."""

from __future__ import annotations

import asyncio
import logging

import pytest

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings, ReplicaPool
from serve_app.dispatch.provider.pool import ProviderPool
from serve_app.dispatch.rows import RenderedRow
from serve_app.errors import BadSettings, EngineFailed
from serve_app.schema import Chunk
from serve_app.spec import Provider
from tests.conftest import served
from tests.dispatch.provider.fakes import FakeProvider, Reply, a_pool, answer, chat, error, reach_of, run, virtually

pytestmark = pytest.mark.timeout(60)
KEY = "sk-proj-Zq81xyzzy0123456789"


@pytest.mark.parametrize(
    "reply",
    [Reply(401, error("no such key")), Reply(403, error("not you")), Reply(429, error("!", code="insufficient_quota"))],
)
def test_a_refused_key_ends_all_work_and_names_its_variable(reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    app = FakeProvider(default=lambda _: reply)
    pool = a_pool(app, api_key_env="MY_KEY")

    async def twice() -> None:
        assert [replica.replica_id for replica in await pool.replicas()] == ["provider:host.test"]
        for _ in range(2):
            with pytest.raises(BadSettings, match="environment variable MY_KEY.*: 4.. "):
                await run(pool, chat("one"), chat("two"))
            assert await pool.replicas() == []
        assert "MY_KEY" in await pool.failure()

    virtually(twice())
    assert len(app.asked) == 1


def test_what_was_answered_before_the_refusal_is_kept_and_nobody_waits_for_the_rest() -> None:
    app = FakeProvider(
        Reply(content=answer("paid"), after_s=1.5), Reply(429, {}, {"retry-after": "3600"}, 1), Reply(401, {}, {}, 2)
    )
    pool = a_pool(app, concurrency=3)

    async def timed() -> float:
        rows = pool.run("provider:host.test", Chunk(1, tuple(chat(str(i)) for i in range(5))))
        paid = await anext(rows)
        assert {place: completion.text for place, completion in paid.completions.items()} == {0: "paid"}
        with pytest.raises(BadSettings, match="refuses all work"):
            await anext(rows)
        return asyncio.get_running_loop().time()

    assert virtually(timed()) == 2
    assert len(app.asked) == 3


async def test_the_key_is_sent_and_never_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hasty: None
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")  # what other tests imported may have made it quieter
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    echo = error(f"Incorrect API key provided: {KEY}; Bearer {KEY}; {KEY[:9]}*****{KEY[-4:]}.")
    replies = [Reply(500, echo, {"retry-after": "0.01"}), Reply(400, echo), Reply(500, f"<p>{KEY}</p>".encode())]
    app = FakeProvider(*replies, Reply(200, {"choices": [], **echo}), default=lambda _: Reply(401, echo))
    told = []
    with served(app, lifespan="off") as url:
        spec = Provider(base_url=f"{url}/v1", model="m", api_key_env="MY_KEY", max_retries=1)
        async with ProviderPool(spec, reach=reach_of(url)) as pool:
            told += [completion.error for completion in await run(pool, chat("one"), chat("two"))]
            with pytest.raises(BadSettings) as refused:
                await run(pool, chat("three"))
            told += [str(refused.value), await pool.failure(), repr(refused.getrepr(showlocals=False)), repr(pool)]
    assert {asked.authorization for asked in app.asked} == {f"Bearer {KEY}"}
    assert len(app.asked) == 5
    text = "\n".join(map(str, told)) + caplog.text
    assert "Incorrect API key provided: [key]" in text
    assert "HTTP/1.1 401" in caplog.text, "the client's own log was not looked at"
    for part in (KEY, KEY[:9], KEY[-4:]):
        assert part not in text


@pytest.mark.parametrize("key", [None, "", " \n", f"{KEY}\n{KEY}", f"{KEY}\u2019"])
def test_a_key_that_cannot_be_sent_is_refused_at_once_without_telling_it(
    key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(BadSettings, match="api_key_env: .*MY_KEY") as refused:
        ProviderPool(Provider(base_url="https://h/v1", model="m", api_key_env="MY_KEY"))
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("url", ["https://me:hunter2@h/v1", "https://h/v1?key=hunter2", "https:///v1", "http://h:x/v1"])
def test_an_address_that_holds_a_secret_or_none_at_all_is_refused(url: str) -> None:
    with pytest.raises(BadSettings, match="base_url: ") as refused:
        ProviderPool(Provider(base_url=url, model="m"))
    assert "hunter2" not in str(refused.value)


async def test_the_dispatcher_gets_every_row_answered_or_learns_why_not() -> None:
    app = FakeProvider()
    pool: ReplicaPool = a_pool(app)
    async with Dispatcher(pool, DispatchSettings(chunk_rows=2, window_rows=2, max_window_rows=2)) as dispatcher:
        stream = dispatcher.stream(Chunk(0, ()))
        await stream.put(RenderedRow(i, chat(str(i))) for i in range(7))
        stream.finish()
        results = [result async for some in stream for result in some]
        assert {(result.key, result.completion.text) for result in results} == {(i, str(i)) for i in range(7)}
        stream.close()
        app.default = lambda _: Reply(401, error("no such key"))
        stream = dispatcher.stream(Chunk(0, ()))
        await stream.put([RenderedRow(0, chat("hello"))])
        stream.finish()
        with pytest.raises(EngineFailed, match="refuses all work .*api_key_env.*: 401"):
            [some async for some in stream]
        stream.close()
