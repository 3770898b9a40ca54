"""Finds a model's application from settings and from the replicas' lists.

Reads requests by `requests/wanted.py` and replicas by `GET /v1/models`.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from starlette.types import Message, Scope

from serve_app.openai.errors import ErrorAnswer, model_not_found, unavailable
from serve_app.serving.requests.asgi import HttpRequest
from serve_app.serving.requests.wanted import Wanted
from serve_app.settings import ModelsSettings

# Serve's name; it treats `-` and `_` alike.
SESSION_HEADER = os.environ.get("RAY_SERVE_SESSION_ID_HEADER_KEY", "x-session-id").lower().replace("_", "-").encode()
# Asked only for lists and unknown names, once in REFRESH_S.
REFRESH_S, LIST_TIMEOUT_S = 1.0, 2.0
Card = dict[str, Any]


class Served(Protocol):
    """One application's replicas."""

    def forward(self, request: HttpRequest, session: str) -> AsyncGenerator[list[Message], None]:
        """A replica's streamed answer. Closing the generator aborts the request."""

    async def models(self) -> list[Card]:
        """Running replicas' OpenAI model objects; none if unreachable."""


class Directory:
    """Maps models to applications. Answers stay valid without replicas."""

    def __init__(self, settings: ModelsSettings, served: Mapping[str, Served]) -> None:
        self._served = served
        self._given = {application.name: application.models for application in settings.applications}
        self._heard: dict[str, list[Card]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._valid_until = 0.0

    async def find(self, model: str) -> str | None:
        name = self._known(model)
        if name is None:
            await self._refresh()
            name = self._known(model)
        return name

    async def cards(self) -> list[Card]:
        """OpenAI's model objects, in application order."""
        await self._refresh()
        cards: dict[str, Card] = {}
        for name, given in self._given.items():
            bare = [{"id": model, "object": "model", "created": 0, "owned_by": "serve_app"} for model in given]
            for card in (*self._heard.get(name, ()), *bare):
                cards.setdefault(card["id"], card)
        return list(cards.values())

    def missing(self, model: str) -> ErrorAnswer:
        """The answer for a model that nobody serves. It may still appear if an application has not answered."""
        if silent := [name for name, given in self._given.items() if not given and name not in self._heard]:
            return unavailable(f"no replica of {', '.join(silent)} has said yet whether it serves `{model}`")
        return model_not_found(model)

    def _known(self, model: str) -> str | None:
        for name, given in self._given.items():
            if model in given or any(card["id"] == model for card in self._heard.get(name, ())):
                return name
        return None

    async def _refresh(self) -> None:
        if time.monotonic() < self._valid_until:
            return
        if self._asking is None or self._asking.done():
            # Own context: Serve cancels work begun in a request that leaves.
            self._asking = asyncio.create_task(self._ask(), context=contextvars.Context())
        await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        answers = await asyncio.gather(*(served.models() for served in self._served.values()))
        self._heard |= {name: cards for name, cards in zip(self._served, answers, strict=True) if cards}
        self._valid_until = time.monotonic() + REFRESH_S


def read_session(scope: Scope, wanted: Wanted) -> str:
    """The session header, or OpenAI's field for shared prefixes."""
    for name, value in scope["headers"]:
        if name.lower().replace(b"_", b"-") == SESSION_HEADER:
            return bytes(value).decode("latin-1")
    return wanted.prompt_cache_key if isinstance(wanted.prompt_cache_key, str) else ""
