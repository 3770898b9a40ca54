"""Online clients: chats whole and streamed, sessions, lists, structured output, and all that clients do wrong.

Each client does one thing after another, drawn by weight. What a kind of request must be answered with is written
beside it: a wrong key's 401 is as right as a chat's 200, and anything else is an error.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from benchmarks.load import SYSTEM, prompts
from benchmarks.soak.site import Site
from benchmarks.soak.tally import Tally, Unexpected

TIMEOUT_S = 300.0
CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
# Of a client that thinks between its requests.
THINK_S = 0.5


class OnlineClient:
    """One client, with connections of its own. `key` names its key."""

    def __init__(self, site: Site, tally: Tally, session: aiohttp.ClientSession, number: int) -> None:
        self._site = site
        self._tally = tally
        self._http = session
        self._draw = random.Random(f"online-{number}")
        self._name = f"client-{number}"

    async def run(self, until: asyncio.Event) -> None:
        kinds, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
        while not until.is_set():
            (kind,) = self._draw.choices(kinds, weights)
            try:
                await KINDS[kind][1](self)
            except Exception as error:  # whatever it is, it is counted
                self._tally.fail(kind, error)
            self._tally.done[kind] += 1
            await asyncio.sleep(self._draw.uniform(0, 2 * THINK_S))

    # --- requests that must be answered ---

    async def chat(self) -> None:
        answer = await self._post(CHAT, self._body())
        if not answer["choices"][0]["message"]["content"]:
            raise Unexpected(f"no content: {answer}")

    async def session(self) -> None:
        headers = {"x-session-id": self._name}
        for _ in range(3):
            await self._post(CHAT, self._body(), headers=headers)

    async def streamed(self) -> None:
        async with self._open(CHAT, self._body(stream=True)) as response:
            text = await response.text()
        if response.status != 200 or not text.rstrip().endswith("data: [DONE]"):
            raise Unexpected(f"{response.status}, ends {text[-200:]!r}")

    async def several(self) -> None:
        answer = await self._post(CHAT, self._body(n=2, logprobs=True, top_logprobs=2))
        if len(answer["choices"]) != 2:
            raise Unexpected(f"not two choices: {answer}")

    async def listed(self) -> None:
        texts = prompts(40, str(self._draw.random()))  # enough to be spread over replicas
        answer = await self._post("/v1/completions", {"model": self._site.model, "prompt": texts, "max_tokens": 1})
        if len(answer["choices"]) != len(texts):
            raise Unexpected(f"{len(answer['choices'])} choices")

    async def structured(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}}
        await self._post(CHAT, self._body(response_format=form))

    async def responses(self) -> None:
        asked = {"model": self._site.model, "input": prompts(1, str(self._draw.random()))[0], "max_output_tokens": 8}
        await self._post("/v1/responses", asked)

    async def tokens(self) -> None:
        await self._post("/tokenize", {"model": self._site.model, "prompt": "some text"})

    async def reading(self) -> None:
        for path in ("/v1/models", "/health", "/metrics", "/v1/populations", "/v1/batches", "/v1/files"):
            async with self._http.get(self._site.base_url + path, headers=self._site.headers("app")) as response:
                await response.read()
                if response.status != 200:
                    raise Unexpected(f"{path}: {response.status}")

    # --- clients that leave ---

    async def leave_stream(self) -> None:
        async with self._open(CHAT, self._body(stream=True, max_tokens=200)) as response:
            for _ in range(self._draw.randint(1, 5)):
                await response.content.readany()
            response.close()

    async def leave_whole(self) -> None:
        try:
            async with asyncio.timeout(self._draw.uniform(0.05, 1.5)):
                await self._post(CHAT, self._body(max_tokens=200))
        except TimeoutError:
            pass  # it left

    async def leave_upload(self) -> None:
        """A body that ends before its announced length, of a chat or of a file."""
        path, kind = self._draw.choice(((CHAT, "application/json"), ("/v1/files", "multipart/form-data; boundary=b")))
        url = self._site.base_url.removeprefix("http://")
        host, _, port = url.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        key = self._site.headers("app")["authorization"]
        head = f"POST {path} HTTP/1.1\r\nHost: {url}\r\nAuthorization: {key}\r\nContent-Type: {kind}\r\n"
        part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        writer.write(f"{head}Content-Length: 1000000\r\n\r\n".encode() + part + b"x" * self._draw.randint(0, 200_000))
        await asyncio.sleep(self._draw.uniform(0, 0.5))
        writer.transport.abort()

    # --- requests that must be refused ---

    async def wrong(self) -> None:
        body, status = self._draw.choice(
            (
                (self._body(messages=[]), 400),
                (self._body(temperature=-1), 400),
                (self._body(model="nobody"), 404),
                (self._body(max_tokens=10**9), 400),
                ({"model": self._site.model}, 400),
            )
        )
        await self._refused(CHAT, body, status)

    async def not_json(self) -> None:
        await self._refused(self._draw.choice((CHAT, "/v1/populations")), b'{"model": ', 400)

    async def wrong_key(self) -> None:
        await self._refused(CHAT, self._body(), 401, {"authorization": "Bearer sk-nobody"})

    async def limited(self) -> None:
        """The key that may ask once a minute asks twice."""
        headers = self._site.headers("limited")
        for _ in range(2):
            async with self._open(CHAT, self._body(max_tokens=1), headers) as response:
                await response.read()
                if response.status not in (200, 429) or (
                    response.status == 429 and "retry-after" not in response.headers
                ):
                    raise Unexpected(f"{response.status}, {dict(response.headers)}")

    # --- how ---

    def _body(self, **fields: Any) -> dict[str, Any]:
        (text,) = prompts(1, str(self._draw.random()))
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        length = self._draw.choice((4, 16, 48))
        return {"model": self._site.model, "messages": messages, "max_tokens": length, **fields}

    def _open(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"content-type": "application/json", **self._site.headers("app"), **(headers or {})}
        return self._http.post(self._site.base_url + path, data=sent, headers=given)

    async def _post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        async with self._open(path, body, headers) as response:
            text = await response.text()
        if response.status != 200:
            raise Unexpected(f"{response.status}: {text[:300]}")
        return json.loads(text)

    async def _refused(self, path: str, body: Any, status: int, headers: dict[str, str] | None = None) -> None:
        async with self._open(path, body, headers) as response:
            text = await response.text()
        if response.status != status:
            raise Unexpected(f"{response.status} instead of {status}: {text[:300]}")


Action = Callable[[OnlineClient], Awaitable[None]]
KINDS: dict[str, tuple[int, Action]] = {
    "chat": (6, OnlineClient.chat),
    "session": (2, OnlineClient.session),
    "streamed": (6, OnlineClient.streamed),
    "several": (2, OnlineClient.several),
    "listed": (1, OnlineClient.listed),
    "structured": (2, OnlineClient.structured),
    "responses": (2, OnlineClient.responses),
    "tokens": (2, OnlineClient.tokens),
    "reading": (2, OnlineClient.reading),
    "leave stream": (4, OnlineClient.leave_stream),
    "leave whole": (4, OnlineClient.leave_whole),
    "leave upload": (3, OnlineClient.leave_upload),
    "wrong": (3, OnlineClient.wrong),
    "not JSON": (2, OnlineClient.not_json),
    "wrong key": (2, OnlineClient.wrong_key),
    "limited": (1, OnlineClient.limited),
}


def new_session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
