"""What is asked again, when, and what ends a row."""

from __future__ import annotations

import json
import math
import time
from email.utils import format_datetime, formatdate

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch.provider.answers import retry_after_s
from serve_app.dispatch.provider.pool import ProviderPool
from serve_app.spec import Provider
from tests.conftest import served
from tests.dispatch.provider.fakes import FakeProvider, Reply, answer, ask, chat, error, reach_of, run

pytestmark = pytest.mark.timeout(60)


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
        asked = Provider(base_url=f"{url}/v1", model="m", timeout_s=0.5)
        async with ProviderPool(asked, reach=reach_of(url)) as pool:
            (completion,) = await run(pool, chat("hello"))
            app.script = [hangs, hangs_up]
        asked = asked.model_copy(update={"max_retries": 1})
        async with ProviderPool(asked, reach=reach_of(url)) as pool:
            (gave_up,) = await run(pool, chat("hello"))
    assert (completion.text, len(app.asked)) == ("HELLO", 5)
    assert gave_up.status == "failed"
    timed_out, hung_up = (gave_up.error or "").split("; ")
    assert timed_out == "attempt 1: no answer in 0.5 s (timeout_s)"
    assert hung_up.startswith("attempt 2: RemoteProtocolError: ")


async def test_a_server_that_is_not_there_fails_the_row(hasty: None, free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    provider = Provider(base_url=f"{url}/v1", model="m", max_retries=2)
    async with ProviderPool(provider, reach=reach_of(url)) as pool:
        (completion,) = await run(pool, chat("hello"))
        assert completion.status == "failed"
        assert (completion.error or "").count("ConnectError: All connection attempts failed") == 3
        assert await pool.replicas()
