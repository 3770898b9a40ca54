"""What the tests of this folder share."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import msgspec

from serve_app.addresses import Reach
from serve_app.dispatch.provider.pool import ProviderPool
from serve_app.schema import Chunk, Completion, Sampling
from serve_app.spec import Provider
from tests.fakes import in_order

T = TypeVar("T")


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


def reach_of(url: str) -> Reach:
    """What a driver reaches whose operator named the URL."""
    return Reach.of([url], "provider_urls")


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
    rows = pool.run("provider:host.test", Chunk(1, prompts, sampling=sampling or Sampling()))
    return in_order([finished.completions async for finished in rows])


def ask(app: FakeProvider, *prompts: bytes, sampling: Sampling | None = None, **changed: Any) -> list[Completion]:
    return list(virtually(run(a_pool(app, **changed), *prompts, sampling=sampling)))
