"""Timing is tested on an event loop whose clock jumps over every wait, sockets on a real server."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from email.utils import format_datetime, formatdate
from typing import Any, TypeVar

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings, ReplicaPool
from serve_app.dispatch.provider import pool as module
from serve_app.dispatch.provider.answers import Logprobs, Position, Token, label_logprobs, retry_after_s
from serve_app.dispatch.provider.limits import Limits
from serve_app.dispatch.provider.pool import ProviderPool
from serve_app.errors import BadSettings, EngineFailed
from serve_app.schema import Chunk, Completion, Sampling
from serve_app.spec import Provider
from tests.conftest import served

KEY = "sk-proj-Zq81xyzzy0123456789"
T = TypeVar("T")
pytestmark = pytest.mark.timeout(60)


# --- a clock that jumps ---


class JumpingSelector(selectors.DefaultSelector):
    """Never waits: where the loop would sleep until its next timer, the time moves there instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("everything waits and nothing will ever happen")
            self.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def virtually(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


# --- a provider that does as it is told ---


@dataclass
class Reply:
    status: int = 200
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    disconnect: bool = False

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


@dataclass
class Asked:
    at: float
    path: str
    authorization: str
    body: dict[str, Any]

    @property
    def what(self) -> str:
        what: str = self.body.get("prompt") or self.body["messages"][-1]["content"]
        return what


def answer(text: str | None = "yes", usage: tuple[int, int] | None = (7, 3), **choice: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else None
    message = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    return {"object": "chat.completion", "choices": [message], "usage": counts}


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


class FakeProvider:
    """Answers with the script's replies, one a request, then as `default` says; by default the question in capitals."""

    def __init__(self, *script: Reply, default: Callable[[Asked], Reply] | None = None) -> None:
        self.script = list(script)
        self.default = default or (lambda asked: Reply(content=answer(asked.what.upper())))
        self.asked: list[Asked] = []
        self.open = self.most_open = 0

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        body = b""
        more = True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        authorization = dict(scope["headers"]).get(b"authorization", b"").decode()
        asked = Asked(asyncio.get_running_loop().time(), scope["path"], authorization, json.loads(body))
        self.asked.append(asked)
        reply = self.script.pop(0) if self.script else self.default(asked)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(reply.after_s)
        finally:
            self.open -= 1
        length = len(reply.body) + reply.disconnect
        headers = {"content-type": "application/json", "content-length": str(length), **reply.headers}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
        await send({"type": "http.response.body", "body": reply.body})


def chat(text: str) -> bytes:
    return msgspec.json.encode(({"role": "user", "content": text},))


def plain(text: str) -> bytes:
    return msgspec.json.encode(text)


def a_pool(app: FakeProvider, *, labels: tuple[str, ...] = (), **changed: Any) -> ProviderPool:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    provider = Provider(**{"base_url": "http://host.test/v1", "model": "gpt-test"} | changed)
    return ProviderPool(provider, labels=labels, client=client)


async def run(pool: ProviderPool, *prompts: bytes, sampling: Sampling | None = None) -> tuple[Completion, ...]:
    result = await pool.run("provider:host.test", Chunk(1, prompts, sampling=sampling or Sampling()))
    return result.completions


def ask(app: FakeProvider, *prompts: bytes, sampling: Sampling | None = None, **changed: Any) -> list[Completion]:
    return list(virtually(run(a_pool(app, **changed), *prompts, sampling=sampling)))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any pause between attempts, where the clock is real."""
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.001)


# --- asking ---


def test_a_chat_is_asked_with_openais_names_of_the_sampling() -> None:
    app = FakeProvider()
    sampling = Sampling(99, 0.5, 0.9, 3, ("END",), {"json": {"type": "object"}})
    (completion,) = ask(app, chat("hello"), sampling=sampling)
    assert (completion.status, completion.text, completion.finish_reason) == ("ok", "HELLO", "stop")
    assert app.asked[0].path == "/v1/chat/completions"
    assert app.asked[0].body == {
        "model": "gpt-test",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 99,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }


def test_plain_text_is_asked_as_a_completion() -> None:
    app = FakeProvider(Reply(content={"choices": [{"text": " there", "finish_reason": "length"}]}))
    (completion,) = ask(app, plain("hello"))
    assert (completion.text, completion.finish_reason) == (" there", "length")
    assert app.asked[0].path == "/v1/completions"
    assert app.asked[0].body["prompt"] == "hello"


def test_tokens_are_counted_as_the_provider_says() -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 32}}
    (completion,) = ask(FakeProvider(Reply(content=answer() | {"usage": usage})), chat("hello"))
    assert (completion.prompt_tokens, completion.cached_tokens, completion.completion_tokens) == (40, 32, 2)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=12), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_answers_keep_the_prompts_order_and_no_more_requests_are_open_than_allowed(
    delays: list[float], concurrency: int
) -> None:
    app = FakeProvider(default=lambda asked: Reply(content=answer(asked.what), after_s=delays[int(asked.what)]))
    pool = a_pool(app, concurrency=concurrency)

    async def in_two_chunks() -> list[Completion]:
        prompts = [chat(str(i)) for i in range(len(delays))]
        half = len(delays) // 2
        first, second = await asyncio.gather(run(pool, *prompts[:half]), run(pool, *prompts[half:]))
        return [*first, *second]

    completions = virtually(in_two_chunks())
    assert [completion.text for completion in completions] == [str(i) for i in range(len(delays))]
    assert app.most_open <= concurrency
    assert app.most_open == min(concurrency, len(delays)) or 0 in delays


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (answer(None, message={"content": None, "refusal": "I will not"}), "the model refused: I will not"),
        (answer(None, finish_reason="length"), "no text; it ended by 'length'"),
        ({"choices": "none"}, "not as OpenAI's API has it"),
    ],
)
def test_an_answer_without_text_is_invalid_and_asked_once(content: dict[str, Any], why: str) -> None:
    app = FakeProvider(default=lambda _: Reply(content=content))
    (completion,) = ask(app, chat("hello"))
    assert (completion.status, completion.text) == ("invalid", None)
    assert why in (completion.error or "")
    assert len(app.asked) == 1


@pytest.mark.parametrize("structured", [{"choice": ["a", "b"]}, {"regex": "a+"}, {"grammar": "root ::= 'a'"}])
def test_structured_output_that_openai_cannot_express_is_never_asked(structured: dict[str, Any]) -> None:
    app = FakeProvider()
    (completion,) = ask(app, chat("hello"), sampling=Sampling(structured=structured))
    assert completion.status == "invalid"
    assert f"cannot be asked for {next(iter(structured))}" in (completion.error or "")
    assert not app.asked
    with pytest.raises(BadSettings, match="only for one json schema"):
        ProviderPool(Provider(base_url="http://h/v1", model="m"), sampling=Sampling(structured=structured))


# --- trying again ---


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_passing_trouble_is_asked_again(status: int) -> None:
    app = FakeProvider(Reply(status, error("busy")))
    (completion,) = ask(app, chat("hello"))
    assert (completion.status, completion.text, completion.error, len(app.asked)) == ("ok", "HELLO", None, 2)


@pytest.mark.parametrize("status", [307, 400, 404, 413, 422])
def test_a_row_that_the_provider_does_not_take_is_invalid_in_the_providers_words(status: int) -> None:
    app = FakeProvider(Reply(status, error("context length is 4096 tokens")))
    bad, good = ask(app, chat("long"), chat("short"))
    assert bad.status == "invalid"
    assert f"{status} " in (bad.error or "")
    assert "context length is 4096 tokens" in (bad.error or "")
    assert (good.text, len(app.asked)) == ("SHORT", 2)


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_after_the_last_retry_the_row_failed_with_the_error_of_each_attempt(retries: int) -> None:
    app = FakeProvider(default=lambda asked: Reply(500, error(f"trouble {len(app.asked)}")))
    (completion,) = ask(app, chat("hello"), max_retries=retries)
    assert completion.status == "failed"
    expected = [f"attempt {i}: 500 Internal Server Error: trouble {i}" for i in range(1, retries + 2)]
    assert completion.error == "; ".join(expected)
    assert len(app.asked) == retries + 1


def test_pauses_double_with_jitter() -> None:
    app = FakeProvider(default=lambda _: Reply(500))
    ask(app, chat("hello"), max_retries=9)
    pauses = [after.at - before.at for before, after in zip(app.asked, app.asked[1:], strict=False)]
    for pause, least in zip(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert least <= pause <= 1.5 * least + 1e-6
    assert len({round(pause / math.floor(pause), 6) for pause in pauses[:6]}) > 1, "no jitter"


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "30"},
        {"retry-after": formatdate(1_000_030, usegmt=True), "date": formatdate(1_000_000, usegmt=True)},
    ],
    ids=["seconds", "date"],
)
def test_retry_after_holds_all_requests_of_the_pool_for_as_long_as_it_says(headers: dict[str, str]) -> None:
    app = FakeProvider(
        Reply(429, error("slow down"), headers, after_s=2),
        default=lambda asked: Reply(content=answer(asked.what), after_s=3),
    )
    completions = ask(app, *(chat(str(i)) for i in range(5)), concurrency=2)
    assert [completion.text for completion in completions] == list("01234")
    # Two go at once. The first is told at 2 s to wait, the second is answered at 3 s; all others wait until 32 s.
    assert [round(asked.at, 3) for asked in app.asked] == [0, 0, 32, 32, 35, 35]


@given(st.text() | st.floats().map(str) | st.integers().map(str) | st.datetimes().map(format_datetime))
@settings(deadline=None)
def test_whatever_retry_after_says_the_pause_is_between_none_and_a_day(value: str) -> None:
    response = httpx.Response(429, headers={b"retry-after": value.encode("utf-8", "replace")})
    assert 0 <= retry_after_s(response) <= 86_400


def test_a_date_that_has_passed_asks_for_no_pause() -> None:
    assert retry_after_s(httpx.Response(503, headers={"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})) == 0
    in_a_minute = {"retry-after": formatdate(time.time() + 60, usegmt=True)}
    assert 55 < retry_after_s(httpx.Response(503, headers=in_a_minute)) <= 60


@given(st.binary() | st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["choices", "message", "content", "error", "usage", "logprobs", "text"]), x)
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_no_answer_whatever_it_holds_breaks_the_chunk(content: bytes) -> None:
    app = FakeProvider(Reply(200, content), Reply(400, content), Reply(500, content))
    first, *_, last = ask(app, chat("one"), chat("two"), chat("three"), max_retries=0)
    assert first.status in ("ok", "invalid", "failed")
    assert (first.text is not None) == (first.status == "ok")
    assert last.status == "failed"


async def test_a_server_that_hangs_or_hangs_up_is_asked_again(hasty: None) -> None:
    hangs, hangs_up = Reply(content={}, after_s=30), Reply(content={}, disconnect=True)
    app = FakeProvider(hangs, hangs_up)
    with served(app, lifespan="off") as url:
        async with ProviderPool(Provider(base_url=f"{url}/v1", model="m", timeout_s=0.5)) as pool:
            (completion,) = await run(pool, chat("hello"))
            app.script = [hangs, hangs_up]
        async with ProviderPool(Provider(base_url=f"{url}/v1", model="m", timeout_s=0.5, max_retries=1)) as pool:
            (gave_up,) = await run(pool, chat("hello"))
    assert (completion.text, len(app.asked)) == ("HELLO", 5)
    assert gave_up.status == "failed"
    timed_out, hung_up = (gave_up.error or "").split("; ")
    assert timed_out == "attempt 1: no answer in 0.5 s (timeout_s)"
    assert hung_up.startswith("attempt 2: RemoteProtocolError: ")


async def test_a_server_that_is_not_there_fails_the_row(hasty: None, free_port: int) -> None:
    async with ProviderPool(Provider(base_url=f"http://127.0.0.1:{free_port}/v1", model="m", max_retries=2)) as pool:
        (completion,) = await run(pool, chat("hello"))
        assert completion.status == "failed"
        assert (completion.error or "").count("ConnectError: All connection attempts failed") == 3
        assert await pool.replicas()


# --- refused ---


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

    async def timed() -> tuple[tuple[Completion, ...], float]:
        return await run(pool, *(chat(str(i)) for i in range(5))), asyncio.get_running_loop().time()

    completions, took_s = virtually(timed())
    assert [completion.status for completion in completions] == ["ok", "failed", "failed", "failed", "failed"]
    assert completions[0].text == "paid"
    assert all("refuses all work" in (completions[i].error or "") for i in (2, 3, 4))
    assert (took_s, len(app.asked)) == (2, 3)


async def test_the_key_is_sent_and_never_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hasty: None
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    echo = error(f"Incorrect API key provided: {KEY}; Bearer {KEY}; {KEY[:9]}*****{KEY[-4:]}.")
    replies = [Reply(500, echo, {"retry-after": "0.01"}), Reply(400, echo), Reply(500, f"<p>{KEY}</p>".encode())]
    app = FakeProvider(*replies, Reply(200, {"choices": [], **echo}), default=lambda _: Reply(401, echo))
    told = []
    with served(app, lifespan="off") as url:
        spec = Provider(base_url=f"{url}/v1", model="m", api_key_env="MY_KEY", max_retries=1)
        async with ProviderPool(spec) as pool:
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
        await stream.put((i, chat(str(i)), 0) for i in range(7))
        stream.finish()
        results = [result async for some in stream for result in some]
        assert {(result.key, result.completion.text) for result in results} == {(i, str(i)) for i in range(7)}
        stream.close()
        app.default = lambda _: Reply(401, error("no such key"))
        stream = dispatcher.stream(Chunk(0, ()))
        await stream.put([(0, chat("hello"), 0)])
        stream.finish()
        with pytest.raises(EngineFailed, match="refuses all work .*api_key_env.*: 401"):
            [some async for some in stream]
        stream.close()


# --- limits ---


def most_in_a_minute(taken: list[tuple[float, float]]) -> float:
    return max((sum(amount for at, amount in taken if start <= at < start + 60) for start, _ in taken), default=0.0)


def admitted(limits: Limits, arrivals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(arrives, tokens) -> (admitted, tokens), in the order of admission."""
    taken: list[tuple[float, float]] = []

    async def one(at: float, tokens: float) -> None:
        await asyncio.sleep(at)
        await limits.admit(tokens)
        taken.append((asyncio.get_running_loop().time(), tokens))

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            for arrival in arrivals:
                tasks.create_task(one(*arrival))

    virtually(all_of_them())
    return taken


times = st.floats(0, 200) | st.sampled_from([0.0, 1.0, 59.999, 60.0, 120.0])


@given(st.floats(0.5, 500), st.lists(times, max_size=60))
@settings(deadline=None)
def test_in_no_minute_are_there_more_requests_than_the_limit_and_one_seconds_worth(
    limit: float, arrivals: list[float]
) -> None:
    taken = [(at, 1.0) for at, _ in admitted(Limits(limit, None), [(at, 5.0) for at in arrivals])]
    assert len(taken) == len(arrivals)
    assert most_in_a_minute(taken) <= limit + max(1.0, limit / 60) + 1e-3


@given(st.floats(10, 1e5), st.lists(st.tuples(times, st.floats(1, 5000)), max_size=40))
@settings(deadline=None)
def test_in_no_minute_are_there_more_tokens_than_the_limit_and_a_burst_or_one_request(
    limit: float, arrivals: list[tuple[float, float]]
) -> None:
    taken = admitted(Limits(None, limit), arrivals)
    assert most_in_a_minute(taken) <= limit + max([limit / 60, *(tokens for _, tokens in arrivals)]) + 1e-2
    assert len(taken) == len(arrivals)


@given(st.floats(1, 500), st.integers(1, 100))
@settings(deadline=None)
def test_requests_that_wait_go_as_fast_as_the_limit_allows(limit: float, n: int) -> None:
    taken = admitted(Limits(limit, None), [(0.0, 1.0)] * n)
    assert taken[-1][0] <= (n - 1) * 60 / limit + 1e-3


@given(st.lists(st.floats(1, 2000), min_size=1, max_size=30))
@settings(deadline=None)
def test_requests_are_admitted_first_come_first_served_however_large(tokens: list[float]) -> None:
    assert [amount for _, amount in admitted(Limits(None, 6000), [(0.0, some) for some in tokens])] == tokens


def test_tokens_that_were_not_used_are_given_back_at_once() -> None:
    async def second_admission(used: float) -> float:
        limits = Limits(None, 600)  # ten a second
        await limits.admit(1000)
        asyncio.get_running_loop().call_later(5, limits.settle, 1000, used)
        await limits.admit(1000)
        return asyncio.get_running_loop().time()

    assert virtually(second_admission(1000)) == pytest.approx(100)
    assert virtually(second_admission(200)) == pytest.approx(20)
    assert virtually(second_admission(0)) == pytest.approx(5)
    assert virtually(second_admission(1300)) == pytest.approx(130)


@given(
    st.floats(10, 1e5),
    st.lists(st.tuples(times, st.floats(1, 5000), st.floats(0, 1), st.floats(0, 100)), min_size=1, max_size=40),
)
@settings(deadline=None)
def test_in_no_minute_are_more_tokens_used_than_that_and_what_was_reserved_before_and_not_used(
    limit: float, requests: list[tuple[float, float, float, float]]
) -> None:
    limits = Limits(None, limit)
    done: list[tuple[float, float, float, float]] = []

    async def one(at: float, reserved: float, share: float, takes_s: float) -> None:
        await asyncio.sleep(at)
        await limits.admit(reserved)
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(takes_s)
        limits.settle(reserved, share * reserved)
        done.append((began, asyncio.get_running_loop().time(), reserved, share * reserved))

    async def all_of_them() -> None:
        await asyncio.gather(*(one(*request) for request in requests))

    virtually(all_of_them())
    most = limit + max([limit / 60, *(reserved for _, _, reserved, _ in done)]) + 1e-2
    for start, *_ in done:
        used = sum(used for began, _, _, used in done if start <= began < start + 60)
        given_back = sum(reserved - used for began, ended, reserved, used in done if began < start <= ended)
        assert used <= most + given_back


@given(
    st.floats(20, 600),
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from([200, 200, 429, 500]), st.floats(0, 5)), min_size=1, max_size=40),
)
@settings(deadline=None, max_examples=40)
def test_retries_count_against_the_limit_as_the_provider_sees_it(
    limit: float, concurrency: int, script: list[tuple[int, float]]
) -> None:
    app = FakeProvider(*(Reply(status, answer("yes"), after_s=after_s) for status, after_s in script))
    completions = ask(app, *[chat("hello")] * 20, requests_per_minute=limit, concurrency=concurrency, max_retries=50)
    assert all(completion.status == "ok" for completion in completions)
    assert most_in_a_minute([(asked.at, 1.0) for asked in app.asked]) <= limit + max(1.0, limit / 60) + 1e-3


def test_the_token_limit_counts_prompt_and_answer_and_is_settled_by_usage() -> None:
    def starts(usage: tuple[int, int] | None) -> list[float]:
        app = FakeProvider(default=lambda _: Reply(content=answer(usage=usage)))
        # Asked for: a quarter of the prompt's bytes and max_tokens, 100 tokens; the limit is ten a second.
        text = "x" * (4 * 60 - len(chat("")))
        ask(app, *[chat(text)] * 3, sampling=Sampling(max_tokens=40), tokens_per_minute=600)
        return [round(asked.at, 3) for asked in app.asked]

    assert starts(None) == [0, 10, 20]
    assert starts((40, 10)) == [0, 5, 10]
    assert starts((100, 100)) == [0, 20, 40]


def test_an_error_answer_took_no_tokens() -> None:
    app = FakeProvider(*[Reply(500)] * 3)
    ask(app, plain("hello"), sampling=Sampling(max_tokens=1000), tokens_per_minute=60)
    assert app.asked[-1].at < 12, "three reservations of a quarter of an hour were kept"


# --- scoring ---


def shown(**probabilities: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": math.log(p), "bytes": []} for token, p in probabilities.items()]
    return {"content": [{"token": top[0]["token"], "logprob": -0.1, "top_logprobs": top}]}


def test_a_chats_labels_get_the_exact_probability_of_the_tokens_that_are_them() -> None:
    tokens = {"yes": 0.25, " yes": 0.25, "Yes": 0.2, " no": 0.1, "yes ": 0.05, "  no": 0.05}
    app = FakeProvider(Reply(content=answer("yes", logprobs=shown(**tokens))))
    (completion,) = ask(app, chat("well?"), labels=(" yes", "no"), sampling=Sampling(500, 0.3))
    assert completion.status == "ok"
    assert completion.text is None
    assert [math.exp(logprob) for logprob in completion.label_logprobs] == pytest.approx([0.5, 0.1], rel=1e-12)
    asked = app.asked[0].body
    assert (asked["max_tokens"], asked["logprobs"], asked["top_logprobs"], asked["temperature"]) == (1, True, 20, 1.0)


def test_a_plain_completions_labels_are_read_in_its_own_format() -> None:
    top = [{" yes": math.log(0.6), "no": math.log(0.3)}]
    app = FakeProvider(Reply(content={"choices": [{"text": " yes", "logprobs": {"top_logprobs": top}}]}))
    (completion,) = ask(app, plain("well?"), labels=("yes", "no"))
    assert [math.exp(logprob) for logprob in completion.label_logprobs] == pytest.approx([0.6, 0.3], rel=1e-12)
    assert (app.asked[0].body["logprobs"], app.asked[0].body["max_tokens"]) == (20, 1)


def test_a_label_that_is_not_shown_makes_the_row_invalid_and_no_number_is_made_up() -> None:
    tokens = {"yes": 0.9, **{f"t{i}": 0.001 for i in range(19)}}
    app = FakeProvider(Reply(content=answer("yes", logprobs=shown(**tokens))))
    (completion,) = ask(app, chat("well?"), labels=("yes", "no"))
    assert (completion.status, completion.label_logprobs) == ("invalid", ())
    assert "'no' not among the 20 most likely tokens" in (completion.error or "")
    assert "'yes' not" not in (completion.error or "")
    assert (completion.prompt_tokens, completion.completion_tokens) == (7, 3), "it is paid for all the same"


def test_the_stand_in_for_an_unknown_log_probability_is_none() -> None:
    logprobs = Logprobs(content=[Position([Token("yes", -0.1), Token("no", -9999.0)])])
    with pytest.raises(ValueError, match="'no' not among"):
        label_logprobs(("yes", "no"), logprobs)


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": None}, {"top_logprobs": [None]}])
def test_an_answer_without_log_probabilities_is_invalid(logprobs: Any) -> None:
    (completion,) = ask(FakeProvider(Reply(content=answer(logprobs=logprobs))), chat("well?"), labels=("yes", "no"))
    assert completion.status == "invalid"
    assert "shows no log-probabilities" in (completion.error or "")


def test_a_provider_that_shows_only_five_tokens_is_asked_for_five_from_then_on() -> None:
    def at_most_five(asked: Asked) -> Reply:
        if asked.body["top_logprobs"] > 5:
            return Reply(400, error("top_logprobs must be at most 5"))
        return Reply(content=answer(logprobs=shown(yes=0.5, no=0.5)))

    app = FakeProvider(default=at_most_five)
    completions = ask(app, chat("one"), chat("two"), labels=("yes", "no"))
    assert [completion.status for completion in completions] == ["ok", "ok"]
    assert [asked.body["top_logprobs"] for asked in app.asked] == [20, 5, 5]
    app.default = lambda _: Reply(400, error("this model has no logprobs"))
    assert ask(app, chat("one"), labels=("yes", "no"))[0].status == "invalid"


@given(st.dictionaries(st.text(" ynｙ", min_size=1, max_size=3), st.floats(-700, 0), min_size=1, max_size=20))
@settings(deadline=None)
def test_a_labels_probability_is_the_sum_over_its_two_spellings(shown_by_token: dict[str, float]) -> None:
    logprobs = Logprobs(top_logprobs=[dict(shown_by_token)])
    spelled = {token.removeprefix(" ") for token in shown_by_token}
    labels = tuple(label for label in spelled if label and not label.startswith(" "))
    for label, logprob in zip(labels, label_logprobs(labels, logprobs), strict=True):
        spellings = [shown_by_token[token] for token in (label, f" {label}") if token in shown_by_token]
        assert math.isclose(math.exp(logprob), math.fsum(map(math.exp, spellings)), rel_tol=1e-9)


@pytest.mark.parametrize("labels", [("yes", " yes"), ("yes", "yes"), ("yes", ""), tuple(map(str, range(21)))])
def test_labels_that_cannot_be_told_apart_or_not_all_be_shown_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(BadSettings, match="labels: "):
        ProviderPool(Provider(base_url="http://h/v1", model="m"), labels=labels)
