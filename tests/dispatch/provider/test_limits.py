"""Requests and tokens a minute."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.dispatch.provider.limits import Limits
from serve_app.schema import Sampling
from tests.dispatch.provider.fakes import FakeProvider, Reply, answer, ask, chat, plain, virtually

pytestmark = pytest.mark.timeout(60)


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
