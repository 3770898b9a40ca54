"""Answers one `/v1/completions` call with a long prompt list from all replicas.

`prompt_list.py` decides what is split.

    client ─ HTTP ─> replica ┬ part ─> its own engine
                             └ part ─ HTTP ───> a peer's engine       parts are pulled: a slow replica takes fewer

The answer is the same as one replica's (vLLM 0.32, `OpenAIServingCompletion`): each prompt is its own engine request
with the same sampling parameters and `seed`, and `index` counts choices by prompt. A 4xx is asked again as a whole, for
vLLM's own refusal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from serve_app.engine.protocol import ASGIApp
from serve_app.errors import ReplicaLost
from serve_app.openai.errors import unavailable
from serve_app.peers.calls import call
from serve_app.peers.listing import Listing, outside_request
from serve_app.peers.peer import Peer
from serve_app.serving.gate import accounting
from serve_app.serving.requests.asgi import Answer, HttpRequest, call_app
from serve_app.serving.requests.disconnect import until_disconnect
from serve_app.serving.requests.prompt_list import MAX_PROMPTS, MAX_PROMPTS_ENV, merge, read_fields, read_prompts, split
from serve_app.settings import ShardingSettings

logger = logging.getLogger(__name__)
Receive = Callable[[], Awaitable[Any]]

PATH = "/v1/completions"
# A replica's method for peers.
COMPLETE = "complete"
# Limits on listing replicas, with a pause after LIST_TIMEOUT_S: a hanging one must not delay every request.
REFRESH_S, LIST_TIMEOUT_S, FAILED_S = 1.0, 2.0, 10.0


class Peers(Protocol):
    async def replicas(self) -> Sequence[str]:
        """Running replicas' ids, including this one."""

    async def complete(self, replica_id: str, part: HttpRequest) -> Answer:
        """Ask a replica, or raise. Cancelling aborts there."""


class Call(NamedTuple):
    """An open part (list position) and its replica."""

    part: int
    replica_id: str


class Sharding:
    """ASGI middleware around an engine's application; `replica_id` is ours."""

    def __init__(self, app: ASGIApp, peers: Peers, replica_id: str, settings: ShardingSettings) -> None:
        self._app = app
        self._peers = peers
        self._me = replica_id
        self._settings = settings
        self._max_prompts = int(os.environ.get(MAX_PROMPTS_ENV, MAX_PROMPTS))
        self._open = 0

    def __getattr__(self, name: str) -> Any:
        # Serve reads routes and adds exception handlers.
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self._may_be_long(scope):
            return await self._app(scope, receive, send)
        messages = await _read(receive)
        replicas, parts = await self._split(scope, b"".join(message.get("body", b"") for message in messages))
        if parts:
            self._open += 1
            try:
                work = spread(parts, replicas, self._complete, self._settings)
                async with until_disconnect(receive, work) as working:
                    answer = working.result() if working.done() else None
            finally:
                self._open -= 1
            if answer is None:
                return None
            if not 400 <= answer.status < 500:
                return await _respond(answer, send)
        return await self._app(scope, _replay(messages, receive), send)

    def _may_be_long(self, scope: Any) -> bool:
        """Cheap test for long bodies, run on every request."""
        threshold = self._settings.threshold
        if threshold is None or scope["type"] != "http" or scope["method"] != "POST":
            return False
        if not scope["path"].endswith(PATH) or self._open >= self._settings.max_requests:
            return False
        length = dict(scope["headers"]).get(b"content-length", b"")
        return not length.isdigit() or int(length) > 3 * threshold  # prompts take at least `"",` or `[],`

    async def _split(self, scope: Any, body: bytes) -> tuple[Sequence[str], list[HttpRequest]]:
        """Replicas and parts; no parts for an unsplit request."""
        fields = read_fields(body)
        prompts = read_prompts(fields)
        if not (self._settings.threshold or 0) < len(prompts) <= self._max_prompts:
            return [], []
        replicas = [self._me, *(replica for replica in await self._peers.replicas() if replica != self._me)]
        if len(replicas) == 1:
            return [], []
        return replicas, split(scope, fields, prompts, self._settings.piece_size(len(prompts), len(replicas)))

    async def _complete(self, replica_id: str, part: HttpRequest) -> Answer:
        if replica_id == self._me:
            return await call_app(self._app, part, self._me)
        answer = await self._peers.complete(replica_id, part)
        if (account := accounting.current()) is not None:
            account.add(*answer.tokens)
        return answer


async def spread(
    parts: Sequence[HttpRequest],
    replicas: Collection[str],
    complete: Callable[[str, HttpRequest], Coroutine[Any, Any, Answer]],
    settings: ShardingSettings,
) -> Answer:
    """Have replicas answer the parts, each a few at a time, and merge; or the first 4xx.

    A part lost or answered 5xx moves to another replica, and the failed one gets no more of this request. After
    `max_attempts`, or without replicas, the answer is the last 5xx or a 503. Open calls are cancelled at the end.
    """
    replicas, waiting = list(replicas), deque(range(len(parts)))
    answers: dict[int, Answer] = {}
    attempts: Counter[int] = Counter()
    calls: dict[asyncio.Task[Answer], Call] = {}
    failure = _unavailable(len(parts))
    try:
        while len(answers) < len(parts):
            while waiting:
                # Retry on the caller, which is alive.
                able = replicas[:1] if attempts[waiting[0]] else replicas
                replica = _idlest(able, calls.values(), settings.open_pieces)
                if replica is None:
                    break
                part = waiting.popleft()
                calls[asyncio.create_task(complete(replica, parts[part]))] = Call(part, replica)
            if not calls:
                return failure
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            for call in done:
                part, replica = calls.pop(call)
                answer = _result(call, replica)
                if answer and answer.status < 400:
                    answers[part] = answer
                    continue
                if answer and answer.status < 500:
                    return answer
                failure = answer or failure
                attempts[part] += 1
                if attempts[part] == settings.max_attempts:
                    return failure
                waiting.append(part)
                if replica in replicas:
                    replicas.remove(replica)
    finally:
        await _cancel(calls)
    return merge([answers[part] for part in range(len(parts))])


def _idlest(replicas: Sequence[str], calls: Collection[Call], most: int) -> str | None:
    """The replica with the fewest open parts, if one may take more."""
    busy = Counter(call.replica_id for call in calls)
    replica = min(replicas, key=lambda name: busy[name], default=None)
    return replica if replica is not None and busy[replica] < most else None


def _result(call: asyncio.Task[Answer], replica: str) -> Answer | None:
    # Ray's error if the replica cancelled.
    error = asyncio.CancelledError() if call.cancelled() else call.exception()
    if error is not None:
        logger.warning("a part of a completion request was lost on %s: %r", replica, error)
        return None
    answer = call.result()
    if answer.status >= 500:
        logger.warning("a part of a completion request failed on %s: status %d", replica, answer.status)
    return answer


def _unavailable(pieces: int) -> Answer:
    error = unavailable(f"no replica could answer one of the {pieces} parts of this list of prompts")
    return Answer(error.status, ((b"content-type", b"application/json"), *error.headers), error.body)


class ListedPeers:
    """See `Peers`. `listing` is of our deployment."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._asking = asyncio.Lock()
        self._listed: list[str] = []
        self._valid_until = 0.0

    async def replicas(self) -> Sequence[str]:
        async with self._asking:
            if time.monotonic() > self._valid_until:
                self._listed, valid_s = await outside_request(self._list())
                self._valid_until = time.monotonic() + valid_s
            return self._listed

    async def _list(self) -> tuple[list[str], float]:
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                return [*await self._listing.refresh()], REFRESH_S
        except Exception as error:  # this replica answers alone
            logger.warning("cannot ask for the other replicas: %r", error)
            return [], FAILED_S

    def peer(self, replica_id: str) -> Peer | None:
        return self._listing.known.get(replica_id)

    async def complete(self, replica_id: str, part: HttpRequest) -> Answer:
        if (peer := self.peer(replica_id)) is None:
            raise ReplicaLost(f"{replica_id} does not answer any more")
        return await call(peer, COMPLETE, part, Answer)


async def _read(receive: Receive) -> list[dict[str, Any]]:
    """The body's messages; the last is `http.disconnect` if the client left."""
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def _replay(messages: list[dict[str, Any]], receive: Receive) -> Receive:
    left = deque(messages)

    async def replay() -> Any:
        return left.popleft() if left else await receive()

    return replay


async def _cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _respond(answer: Answer, send: Callable[[Any], Awaitable[None]]) -> None:
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
