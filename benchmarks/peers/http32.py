"""32 rows at a time over HTTP: send 32 chat requests at once, wait for all, send the next 32.

The flow that this project replaces, against our own replicas' `/v1/chat/completions`. Knows HTTP only: the server is
somebody else's. Generating, each row is answered by a short JSON text, as the original had it, and `parsed` counts
the answers that are JSON with a boolean `will_click`; scored, by one token with the labels' log-probabilities.

The server's cache is shared with whoever else asks it: give each side that uses it people that no other side had, or
the second finds all of its prompts cached (94 % instead of 70 %).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx

from benchmarks.peers import SETTLE_S, Case, Pass, summary
from benchmarks.peers.chat import label_logprobs, scored_body, usage
from serve_app.errors import ServerUnavailable
from serve_app.schema import Row

BATCH_ROWS = 32
# The JSON with a reason of about 20 words takes some 50 tokens.
MAX_TOKENS = 60
TIMEOUT_S = 300.0
ASK_JSON = (
    'Answer with JSON only: {"will_click": true or false, "confidence": a number from 0 to 1, '
    '"reasoning": one short sentence}.'
)
Body = dict[str, Any]
Ask = Callable[[Row], Awaitable[Body | None]]


class Http32:
    """The flow in this process. `base_url` is the server's, without `/v1`."""

    def __init__(self, base_url: str, case: Case, *, generate: bool) -> None:
        self._base_url = base_url.rstrip("/").removesuffix("/v1")
        self._case = case
        self._generate = generate
        self._model = ""

    def start(self) -> None:
        """Ask for the served model's name. Raises ServerUnavailable."""
        try:
            answer = httpx.get(f"{self._base_url}/v1/models", timeout=TIMEOUT_S).raise_for_status()
            self._model = answer.json()["data"][0]["id"]
        except (httpx.HTTPError, LookupError, ValueError) as error:
            raise ServerUnavailable(f"{self._base_url}/v1/models names no model: {error!r}") from error

    def run(self, rows: Sequence[Row]) -> Pass:
        time.sleep(SETTLE_S)
        started = time.perf_counter()
        bodies = asyncio.run(self._run(rows))
        wall_s = time.perf_counter() - started
        time.sleep(SETTLE_S)
        prompt_tokens, cached_tokens = usage(bodies)
        answers = [label_logprobs(body, self._case.label_ids) for body in bodies]
        own: dict[str, float | None] = {}
        if self._generate:  # an answer is a text; what it says of the labels is not asked
            answers = [[0.0] if body else None for body in bodies]
            own["parsed"] = sum(_will_click(body) is not None for body in bodies)
            own["completion_tokens"] = sum(body["usage"]["completion_tokens"] for body in bodies if body)
        return summary(
            len(rows),
            wall_s=wall_s,
            logprobs=answers,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            **own,
        )

    def stop(self) -> None:
        """Nothing was started."""

    async def _run(self, rows: Sequence[Row]) -> list[Body | None]:
        # A connection for each request that is open at once, kept between requests.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self._base_url, timeout=TIMEOUT_S, limits=limits) as client:

            async def ask(row: Row) -> Body | None:
                with suppress(httpx.HTTPError):
                    response = await client.post("/v1/chat/completions", json=self._body(row))
                    if response.is_success:
                        body: Body = response.json()
                        return body
                return None

            return await self._flow(rows, ask)

    async def _flow(self, rows: Sequence[Row], ask: Ask) -> list[Body | None]:
        bodies: list[Body | None] = []
        for first in range(0, len(rows), BATCH_ROWS):
            bodies += await asyncio.gather(*(ask(row) for row in rows[first : first + BATCH_ROWS]))
        return bodies

    def _body(self, row: Row) -> Body:
        if self._generate:
            messages = ask_json(row.messages)
            return {"model": self._model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0.0}
        return scored_body(self._model, row.messages, self._case.label_ids)


def ask_json(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The chat with its system message asking for JSON instead of one word."""
    system, *others = messages
    task = system["content"].rpartition("Answer with")[0] or f"{system['content']}\n"
    return [{**system, "content": task + ASK_JSON}, *others]


def _will_click(body: Body | None) -> bool | None:
    """The answer, if the text is the JSON that was asked for."""
    try:
        value = json.loads(body["choices"][0]["message"]["content"])["will_click"]  # type: ignore[index]
    except (LookupError, TypeError, ValueError):
        return None
    return value if isinstance(value, bool) else None
