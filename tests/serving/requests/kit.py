"""A replica's application and its peers, made up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from serve_app.serving.requests.asgi import Answer, HttpRequest, call_app
from serve_app.serving.requests.sharding import Sharding
from serve_app.settings import ShardingSettings

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

    async def complete(self, replica_id: str, part: HttpRequest) -> Answer:
        self.calls[replica_id] += 1
        self.open[replica_id] += 1
        self.most_open = max(self.most_open, self.open[replica_id])
        try:
            await asyncio.sleep(0)
            if replica_id in self.dead:
                raise ConnectionError(f"{replica_id} died")
            answer = await call_app(self.apps[replica_id], pickle.loads(pickle.dumps(part)), replica_id)
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
