"""Lists of prompts cut over fake replicas; the fake application answers as vLLM does, from the prompt alone."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
import pickle
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.serving.requests.piece import Answer, Piece, answer_piece
from serve_app.serving.requests.prompt_list import merge
from serve_app.serving.requests.sharding import HandlePeers, Sharding
from serve_app.settings import ShardingSettings
from tests.fakes import replica

ME = "me"
MANY = [f"prompt {i}" for i in range(40)]


class FakeApp:
    """An engine's completions application. A prompt "bad" is refused by its place in the list, what has `broken`
    in it is answered with 500, `hold` makes it wait; what it was asked is in `asked`, how often it saw its client
    leave in `aborted`."""

    def __init__(self, *, broken: str | None = None, hold: asyncio.Event | None = None, delay_s: float = 0) -> None:
        self.broken, self.hold, self.delay_s = broken, hold, delay_s
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.aborted = 0
        self.routes = ["a route"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        self.asked.append(({name.decode(): value.decode() for name, value in scope["headers"]}, body))
        # As in vLLM, the work is a task of its own: cancelling the application does not reach it.
        work, leaving = asyncio.create_task(self._work(body)), asyncio.create_task(receive())
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.aborted += 1
            work.cancel()
            return
        leaving.cancel()
        status, answer = work.result()
        headers = [(b"Content-Type", b"application/json"), (b"X-From", b"fake")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        half = len(answer) // 2
        await send({"type": "http.response.body", "body": answer[:half], "more_body": True})
        await send({"type": "http.response.body", "body": answer[half:]})

    async def _work(self, body: bytes) -> tuple[int, bytes]:
        if self.hold:
            await self.hold.wait()
        await asyncio.sleep(self.delay_s)
        if self.broken is not None and self.broken.encode() in body:
            return 500, b'{"error": {"message": "engine is dead", "code": 500}}'
        try:
            return complete(json.loads(body))
        except ValueError:
            return 400, b'{"error": {"message": "not JSON", "code": 400}}'


def complete(ask: dict[str, Any]) -> tuple[int, bytes]:
    """vLLM's `request_output_to_completion_response`, on fake tokens."""
    prompts = ask["prompt"] if isinstance(ask["prompt"], list) else [ask["prompt"]]
    choices: list[dict[str, Any]] = []
    cached = 0
    for place, prompt in enumerate(prompts):
        if prompt == "bad":
            return 400, json.dumps({"error": {"message": f"prompt {place} is bad", "code": 400}}).encode()
        for k in range(ask.get("n", 1)):
            seed = f"{prompt}/{ask.get('seed')}/{k}"
            text = hashlib.sha256(seed.encode()).hexdigest()[:4]
            logprob = -int(text, 16) / 7
            choices.append(
                {
                    "index": len(choices),
                    "text": (str(prompt) if ask.get("echo") else "") + text,
                    "logprobs": {"tokens": [text], "token_logprobs": [logprob]} if "logprobs" in ask else None,
                    "finish_reason": "length",
                    "prompt_logprobs": [None, {"7": {"logprob": logprob}}] if ask.get("prompt_logprobs") else None,
                }
            )
        cached += len(prompt) // 2
    usage: dict[str, Any] = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": 4 * len(choices)}
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    usage["prompt_tokens_details"] = {"cached_tokens": cached, "audio_tokens": None} if ask.get("details") else None
    single = len(prompts) == 1
    answer = {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": 7,
        "model": ask.get("model", "fake"),
        "choices": choices,
        "usage": usage,
        "system_fingerprint": "fp",
        "kv_transfer_params": ask.get("kv_transfer_params"),
        "metrics": {"time_to_first_token_ms": 1.0} if single else None,
    }
    return 200, json.dumps(answer).encode()


class FakePeers:
    """Replicas of fake applications, reached through pickles; a call to one of `dead` fails, once it was made."""

    def __init__(self, apps: dict[str, FakeApp], dead: set[str] | None = None) -> None:
        self.apps, self.dead = apps, dead or set()
        self.calls: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.most_open = 0
        self.listed = 0

    async def replicas(self) -> list[str]:
        self.listed += 1
        return [*self.apps, ME]

    async def complete(self, replica_id: str, piece: Piece) -> Answer:
        self.calls[replica_id] += 1
        self.open[replica_id] += 1
        self.most_open = max(self.most_open, self.open[replica_id])
        try:
            await asyncio.sleep(0)
            if replica_id in self.dead:
                raise ConnectionError(f"{replica_id} died")
            answer = await answer_piece(self.apps[replica_id], pickle.loads(pickle.dumps(piece)), replica_id)
            return pickle.loads(pickle.dumps(answer))  # type: ignore[no-any-return]
        finally:
            self.open[replica_id] -= 1


def sharding(peers: FakePeers, app: FakeApp | None = None, **changes: Any) -> Sharding:
    return Sharding(app or FakeApp(), peers, ME, ShardingSettings(**changes))


async def post(app: Any, ask: dict[str, Any] | bytes, path: str = "/v1/completions", **kwargs: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    content = ask if isinstance(ask, bytes) else json.dumps(ask).encode()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, content=content, **kwargs)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


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


# --- what is not cut ---

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


# --- headers ---


async def test_every_piece_has_the_clients_headers_and_a_request_id_of_its_own() -> None:
    pool, mine = FakePeers({"a": FakeApp()}), FakeApp()
    sent = {"Authorization": "Bearer k", "X-Request-Id": "r", "X-Data": "1", "Accept-Encoding": "gzip"}
    await post(sharding(pool, mine), {"prompt": MANY}, headers=sent)
    asked = [*mine.asked, *pool.apps["a"].asked]
    assert len(asked) == 5
    assert all((h["authorization"], h["x-data"]) == ("Bearer k", "1") for h, _ in asked)
    assert all(int(headers["content-length"]) == len(body) for headers, body in asked)
    assert not any("accept-encoding" in headers for headers, _ in asked)
    ids = {headers["x-request-id"]: json.loads(body)["prompt"][0] for headers, body in asked}
    assert ids == {"r": MANY[0], "r-1": MANY[8], "r-2": MANY[16], "r-3": MANY[24], "r-4": MANY[32]}


async def test_a_request_id_in_the_body_counts_too_and_none_is_made_up() -> None:
    for fields, ids in (({"request_id": "b"}, {None, "b-1", "b-2", "b-3", "b-4"}), ({}, {None})):
        pool, mine = FakePeers({"a": FakeApp()}), FakeApp()
        await post(sharding(pool, mine), {"prompt": MANY, **fields})
        assert {h.get("x-request-id") for h, _ in [*mine.asked, *pool.apps["a"].asked]} == ids


# --- faults ---


async def test_a_refusal_is_that_of_the_whole_list_and_aborts_the_other_pieces() -> None:
    hold = asyncio.Event()
    pool, mine = FakePeers({"a": FakeApp(hold=hold)}), FakeApp()
    ask = {"prompt": [*MANY[:17], "bad", *MANY[18:]]}
    answer = await post(sharding(pool, mine), ask)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "prompt 17 is bad"
    assert json.loads(mine.asked[-1][1]) == ask
    assert pool.apps["a"].aborted == len(pool.apps["a"].asked) == 2


async def test_the_pieces_of_a_peer_that_dies_are_answered_by_others() -> None:
    pool = FakePeers({"a": FakeApp(), "b": FakeApp()}, dead={"a"})
    answer = await post(sharding(pool, piece_prompts=2), {"prompt": MANY})
    assert answer.json() == (await post(FakeApp(), {"prompt": MANY})).json()
    assert answer.headers["x-serve-app-replicas"] == "2"
    assert pool.calls["a"] == 2  # those that were open; it gets no more


async def test_a_piece_that_was_lost_goes_to_the_replica_that_has_the_request() -> None:
    names = ["a", "b", "c", "d", "e"]  # as many as are still of an older version, say
    pool = FakePeers({name: FakeApp() for name in names}, dead=set(names))
    answer = await post(sharding(pool, max_attempts=2), {"prompt": MANY})
    assert answer.json() == (await post(FakeApp(), {"prompt": MANY})).json()


async def test_an_application_that_raises_once_it_answered_has_answered() -> None:
    class Raising(FakeApp):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await super().__call__(scope, receive, send)
            raise ValueError("as Starlette does after a 500")

    answer = await post(sharding(FakePeers({"a": Raising(broken="")}), Raising(broken="")), {"prompt": MANY})
    assert answer.json()["error"]["message"] == "engine is dead"


async def test_an_engine_that_answers_500_counts_as_lost() -> None:
    pool = FakePeers({"a": FakeApp()})
    answer = await post(sharding(pool, FakeApp(broken="")), {"prompt": MANY})
    assert answer.json() == (await post(FakeApp(), {"prompt": MANY})).json()
    assert answer.headers["x-serve-app-replicas"] == "1"


async def test_when_all_engines_answer_500_so_does_the_request() -> None:
    pool = FakePeers({"a": FakeApp(broken="")})
    answer = await post(sharding(pool, FakeApp(broken="")), {"prompt": MANY})
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "engine is dead")


async def test_when_no_replica_is_left_the_answer_is_503_in_openais_shape() -> None:
    class Dying(FakeApp):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise ConnectionError("lost")

    answer = await post(sharding(FakePeers({"a": FakeApp()}, dead={"a"}), Dying()), {"prompt": MANY})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (503, "ServiceUnavailableError")
    assert "try again" in error["message"]


async def test_a_piece_is_tried_a_bounded_number_of_times() -> None:
    apps = {name: FakeApp(broken="poison") for name in ("a", "b", "c", "d", ME)}
    app = sharding(FakePeers({name: apps[name] for name in "abcd"}), apps[ME], max_attempts=2)
    answer = await post(app, {"prompt": [*MANY, "poison"]})
    assert answer.status_code == 500
    assert sum(b"poison" in body for app in apps.values() for _, body in app.asked) == 2


async def test_a_client_that_leaves_cancels_every_piece() -> None:
    hold = asyncio.Event()
    pool, mine = FakePeers({"a": FakeApp(hold=hold)}), FakeApp(hold=hold)
    await leave(sharding(pool, mine), lambda: len(mine.asked) == len(pool.apps["a"].asked) == 2)
    assert (mine.aborted, pool.apps["a"].aborted) == (2, 2)
    assert pool.open.total() == 0


async def test_a_request_that_serve_cancels_cancels_every_piece() -> None:
    hold = asyncio.Event()
    pool, mine = FakePeers({"a": FakeApp(hold=hold)}), FakeApp(hold=hold)
    request = asyncio.create_task(post(sharding(pool, mine), {"prompt": MANY}))
    await until(lambda: len(mine.asked) == len(pool.apps["a"].asked) == 2)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert (mine.aborted, pool.apps["a"].aborted) == (2, 2)
    assert pool.open.total() == 0


async def test_a_client_that_leaves_before_its_body_ends_is_the_engines_to_notice() -> None:
    start = {"type": "http.request", "body": b'{"prompt": ["a", ', "more_body": True}
    messages: list[dict[str, Any]] = [start, {"type": "http.disconnect"}]
    left, seen = list(messages), []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await Sharding(engine, FakePeers({"a": FakeApp()}), ME, ShardingSettings())(scope, receive, None)
    assert seen == messages


async def leave(app: Any, when: Callable[[], bool]) -> None:
    """Ask `app`, and leave once `when` holds."""
    gone = asyncio.Event()
    body = [json.dumps({"prompt": MANY}).encode()]

    async def receive() -> dict[str, Any]:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pytest.fail("an answer to nobody")

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    request = asyncio.create_task(app(scope, receive, send))
    await until(when)
    gone.set()
    async with asyncio.timeout(5):
        await request


# --- the handle ---


class FakeHandle:
    """Serve's handle: `answers` of each broadcast, and calls that wait for ever."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.broadcasts = answers, 0
        self.targets: list[str] = []
        self.cancelled = False
        self.complete = self

    def broadcast(self, method: str) -> FakeHandle:
        self.broadcasts += 1
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if not self.answers:
            raise TimeoutError
        return self.answers

    def remote(self, piece: Piece, *, replica_id: str) -> FakeHandle:
        self.targets.append(f"{replica_id} {request_of_serve.get(None)}")
        return self

    def __await__(self) -> Any:
        return asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.cancelled = True


request_of_serve: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_of_serve")


@pytest.mark.parametrize("answers", [[replica("a"), ValueError("lost"), replica("b")], []])
async def test_the_replicas_are_asked_once_for_many_requests_also_when_they_do_not_answer(answers: list[Any]) -> None:
    handle = FakeHandle(answers)
    peers = HandlePeers(handle)
    listed = await asyncio.gather(*(peers.replicas() for _ in range(9)))
    assert listed == [["a", "b"] if answers else []] * 9
    assert handle.broadcasts == 1


async def test_a_cancelled_call_is_cancelled_on_its_replica_and_carries_no_request_of_serve() -> None:
    handle = FakeHandle([])
    request_of_serve.set("the client's")
    call = asyncio.create_task(HandlePeers(handle).complete("a", Piece({}, b"")))
    await until(lambda: handle.targets == ["a None"])
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert handle.cancelled


def test_a_piece_is_at_least_as_large_as_set_and_leaves_half_of_a_share_to_be_pulled() -> None:
    assert ShardingSettings().piece_size(96, 2) == 12
    assert ShardingSettings().piece_size(48, 2) == 8
    assert ShardingSettings().piece_size(1000, 8) == 32
    assert ShardingSettings(open_pieces=1).piece_size(1000, 4) == 125


def test_msgspec_keeps_what_it_was_not_asked_to_read() -> None:
    raw = msgspec.json.decode(b'{"a": 1.0e5 , "b":[ 1 ]}', type=dict[str, msgspec.Raw])
    assert msgspec.json.encode(raw) == b'{"a":1.0e5,"b":[ 1 ]}'
