"""Lists of prompts cut over fake replicas; the fake application answers as vLLM does, from the prompt alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.serving.requests.asgi import Answer
from serve_app.serving.requests.prompt_list import merge
from serve_app.serving.requests.sharding import Sharding
from serve_app.settings import ShardingSettings
from tests.serving.requests.kit import MANY, ME, FakeApp, FakePeers, post, sharding, until

prompt_lists = st.lists(st.text(max_size=6), min_size=2, max_size=40) | st.lists(
    st.lists(st.integers(0, 60_000), min_size=1, max_size=6), min_size=2, max_size=40
)
other_fields = st.fixed_dictionaries(
    {"model": st.just("m")},
    optional={
        "n": st.integers(1, 3),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "echo": st.booleans(),
        "logprobs": st.integers(0, 5),
        "prompt_logprobs": st.integers(0, 2),
        "details": st.booleans(),
        "stream": st.sampled_from([None, False]),
        "kv_transfer_params": st.just({"remote": 1}),
        "priority": st.integers(-3, 3),
    },
)


@settings(max_examples=80, deadline=None)
@given(prompts=prompt_lists, fields=other_fields, size=st.integers(1, 9), open_pieces=st.integers(1, 3), peers=st.sets(
    st.sampled_from("abc"), min_size=1))  # fmt: skip
async def test_any_cut_gives_the_answer_that_one_replica_gives(
    prompts: list[Any], fields: dict[str, Any], size: int, open_pieces: int, peers: set[str]
) -> None:
    ask = {**fields, "prompt": prompts}
    whole = await post(FakeApp(), ask)
    pool = FakePeers({name: FakeApp() for name in sorted(peers)})
    cut = await post(sharding(pool, threshold=1, piece_prompts=size, open_pieces=open_pieces), ask)
    assert cut.status_code == 200
    assert list(cut.json().items()) == list(whole.json().items())
    assert {**cut.headers, "x-serve-app-replicas": "", "content-length": ""} == {
        **whole.headers, "x-serve-app-replicas": "", "content-length": ""}  # fmt: skip
    assert int(cut.headers["content-length"]) == len(cut.content)
    assert int(cut.headers["x-serve-app-replicas"]) <= len(peers) + 1
    assert pool.most_open <= open_pieces


async def test_both_replicas_work_and_the_answer_says_so() -> None:
    pool, mine = FakePeers({"a": FakeApp()}), FakeApp()
    answer = await post(sharding(pool, mine), {"prompt": MANY})
    assert answer.headers["x-serve-app-replicas"] == "2"
    asked = [json.loads(body)["prompt"] for app in (mine, pool.apps["a"]) for _, body in app.asked]
    assert sorted(prompt for prompts in asked for prompt in prompts) == sorted(MANY)
    assert len(mine.asked) >= 2
    assert len(pool.apps["a"].asked) >= 2


async def test_a_slow_replica_takes_fewer_pieces() -> None:
    pool = FakePeers({"fast": FakeApp(), "slow": FakeApp(delay_s=0.05)})
    await post(sharding(pool, FakeApp(), piece_prompts=1), {"prompt": MANY})
    assert pool.calls["slow"] < pool.calls["fast"]


def test_what_is_not_merged_keeps_its_bytes() -> None:
    def answer(logprob: bytes) -> Answer:
        body = b'{"id":"a","choices":[{"index":0,"logprobs":%b,"x":1.0}],"usage":{"prompt_tokens":1}}' % logprob
        return Answer(200, (), body)

    merged = merge([answer(b"-0.10000000000000000001"), answer(b"[1e-300,123456789012345678901234567890]")])
    assert merged.body == (
        b'{"id":"a","choices":[{"index":0,"logprobs":-0.10000000000000000001,"x":1.0},'
        b'{"index":1,"logprobs":[1e-300,123456789012345678901234567890],"x":1.0}],"usage":{"prompt_tokens":2}}'
    )


STRAIGHT = {
    "a stream": {"prompt": MANY, "stream": True},
    "a stream by another word": {"prompt": MANY, "stream": "true"},
    "one text": {"prompt": "x" * 200},
    "one list of token ids": {"prompt": list(range(100))},
    "texts and token ids": {"prompt": [*MANY, [1, 2]]},
    "texts and nothing": {"prompt": [*MANY, None]},
    "embeddings": {"prompt": MANY, "prompt_embeds": ["e"]},
    "a list no longer than the threshold": {"prompt": ["x" * 9] * 32},
    "a list longer than vLLM takes": {"prompt": ["x"] * 1025},
    "no prompt": {"messages": ["x"] * 100},
    "no object": ["x"] * 100,
}


@pytest.mark.parametrize("ask", STRAIGHT.values(), ids=STRAIGHT)
async def test_it_goes_straight_to_the_own_engine_untouched(ask: Any) -> None:
    pool, mine = FakePeers({"a": FakeApp()}), FakeApp(broken="")
    body = json.dumps(ask, indent=1).encode()
    answer = await post(sharding(pool, mine), body, headers={"X-Request-Id": "r"})
    assert answer.status_code == 500
    ((headers, asked),) = mine.asked
    assert asked == body
    assert headers["x-request-id"] == "r"
    assert (pool.listed, pool.calls.total()) == (0, 0)


@pytest.mark.parametrize("body", [b'{"prompt": ' + b"[" * 50_000, b'\xff\xfe{"prompt": 1}' * 20, b'{"a": NaN}' * 20])
async def test_a_body_that_cannot_be_read_is_the_engines_to_refuse(body: bytes) -> None:
    pool, mine = FakePeers({"a": FakeApp()}), FakeApp(broken="")
    assert (await post(sharding(pool, mine), body)).status_code == 500
    assert [asked for _, asked in mine.asked] == [body]


async def test_other_paths_and_a_replica_that_is_alone_go_straight() -> None:
    pool, mine = FakePeers({"a": FakeApp()}), FakeApp()
    assert (await post(sharding(pool, mine), {"prompt": MANY}, "/v1/embeddings")).status_code == 200
    assert pool.listed == 0
    alone = await post(sharding(FakePeers({}), mine), {"prompt": MANY})
    assert "x-serve-app-replicas" not in alone.headers
    assert len(alone.json()["choices"]) == len(MANY)
    off = await post(sharding(pool, mine, threshold=None), {"prompt": MANY})
    assert "x-serve-app-replicas" not in off.headers


async def test_a_short_body_is_not_even_read() -> None:
    app, received = FakeApp(), []

    async def receive() -> dict[str, Any]:
        received.append(len(app.asked))
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"content-length", b"96")]}
    read: list[Any] = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        read.append(receive)

    await Sharding(engine, FakePeers({}), ME, ShardingSettings())(scope, receive, None)
    assert read == [receive]
    assert received == []


@pytest.mark.parametrize("prompt", ["", [1]])
async def test_the_shortest_prompts_are_cut_too(prompt: Any) -> None:
    body = json.dumps({"prompt": [prompt] * 33}, separators=(",", ":")).encode()
    answer = await post(sharding(FakePeers({"a": FakeApp()})), body)
    assert answer.headers["x-serve-app-replicas"] == "2"


async def test_a_body_in_parts_and_of_unknown_length_is_cut_too() -> None:
    async def parts() -> AsyncIterator[bytes]:
        body = json.dumps({"prompt": MANY}).encode()
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    transport = httpx.ASGITransport(app=sharding(FakePeers({"a": FakeApp()})))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/v1/completions", content=parts())
    assert answer.headers["x-serve-app-replicas"] == "2"
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(40))


async def test_more_requests_at_once_than_allowed_are_answered_by_the_replica_alone() -> None:
    hold = asyncio.Event()
    pool, mine = FakePeers({"a": FakeApp(hold=hold)}), FakeApp(hold=hold)
    app = sharding(pool, mine, max_requests=1)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(post(app, {"prompt": MANY}))
        await until(lambda: pool.calls.total() > 0)
        second = group.create_task(post(app, {"prompt": MANY}))
        await until(lambda: any(len(json.loads(body)["prompt"]) == 40 for _, body in mine.asked))
        hold.set()
    assert "x-serve-app-replicas" in first.result().headers
    assert "x-serve-app-replicas" not in second.result().headers
    assert "x-serve-app-replicas" in (await post(app, {"prompt": MANY})).headers


async def test_what_serve_reads_of_an_application_it_reads_through_the_middleware() -> None:
    assert sharding(FakePeers({})).routes == ["a route"]
    with pytest.raises(AttributeError):
        _ = sharding(FakePeers({})).no_such_thing
