"""The gate: ASGI middleware that limits who may ask, how much, and how long.

    request ─> id ─> key ─> scope ─> kind ─> size ─> room ─> rate ─> application ─> tokens, log, metrics

Knows keys, limits and OpenAI's errors. Bodies pass through, only counted. Without keys, `browsers.py` finds requests of
foreign pages.

- Everything needs a key except reading `open_paths` and CORS preflights. vLLM's own check guards only /v1, /v2,
  /inference and /cohere, not /tokenize, /score, /pooling, SageMaker's generating /invocations and more. /health and
  /ping are open for probes; /metrics and /version are not, as they tell traffic and model names.
- Only POST counts against limits and as in flight: a job's status is free.
- A token costs one call here; its bytes pass unchanged.
"""

from __future__ import annotations

import logging
import re
import uuid
from functools import partial
from typing import Any

from serve_app.engine.protocol import ASGIApp
from serve_app.serving.gate import browsers
from serve_app.serving.gate import refusal as say
from serve_app.serving.gate.accounting import Account, use
from serve_app.serving.gate.exchange import Exchange
from serve_app.serving.gate.keys import Key, KeyRing, Scope
from serve_app.serving.gate.limits import Standing
from serve_app.serving.gate.refusal import Refusal
from serve_app.serving.gate.request_log import RequestLog
from serve_app.serving.gate.request_metrics import RequestMetrics
from serve_app.serving.gate.room import Room
from serve_app.serving.gate.shared_limits import RayCounters, SharedLimits
from serve_app.settings import AccessSettings

logger = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"
MAX_REQUEST_ID = 128
_request_id = re.compile(rb"[!-~]{1,%d}" % MAX_REQUEST_ID).fullmatch
# RFC 6455's policy violation.
WEBSOCKET_REFUSED = 1008


class Gate:
    """`scope` is what a key must allow. `echo_request_id` is for servers without Serve's proxy, which returns the id
    itself. Raises BadSettings for unusable key files.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: AccessSettings,
        scope: Scope,
        *,
        limits: SharedLimits | None = None,
        echo_request_id: bool = False,
    ) -> None:
        self._app = app
        self._settings = settings
        self._scope = scope
        self._keys = KeyRing(settings.key_files) if settings.key_files else None
        self._limits = limits or SharedLimits(RayCounters())
        self._echo_request_id = echo_request_id
        self._open_paths = frozenset(settings.open_paths)
        self._room = Room(settings)
        self._log = RequestLog() if settings.log_requests else None
        self._metrics = RequestMetrics(scope, app)
        if self._keys is None:
            logger.warning("no key_files are set: anybody who reaches this server may use its %s routes", scope)

    def __getattr__(self, name: str) -> Any:
        # Serve reads routes and adds exception handlers.
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            return await self._websocket(scope, receive, send)
        if scope["type"] != "http" or self._is_open(scope):
            return await self._app(scope, receive, send)
        exchange = Exchange(scope, receive, send, self._settings)
        try:
            refusal = (
                self._identify(exchange)
                or self._authenticate(exchange)
                or self._check_kind(exchange)
                or self._check_size(exchange)
            )
            if refusal is not None:
                await exchange.refuse(refusal)
            elif scope["method"] == "POST":
                await self._run_limited(exchange)
            else:
                await exchange.run(self._app)
        finally:
            exchange.account.when_idle(partial(self._settle, exchange))

    async def _run_limited(self, exchange: Exchange) -> None:
        place = self._room.enter(exchange.key.name if exchange.key else "", announced_bytes(exchange.headers))
        if isinstance(place, Refusal):
            return await exchange.refuse(place)
        exchange.account.place = place
        try:
            refusal = await self._count_request(exchange)
            if refusal is not None:
                return await exchange.refuse(refusal)
            with use(exchange.account):
                await exchange.run(self._app)
        finally:
            place.leave()

    def _settle(self, exchange: Exchange) -> None:
        self._charge(exchange.key, exchange.account)
        if self._log is not None:
            self._log.write(exchange)
        self._metrics.record(exchange)

    # --- each check, in order, answers with its refusal ---

    def _is_open(self, scope: Any) -> bool:
        if scope["path"].removeprefix(scope.get("root_path", "")) in self._open_paths:
            return scope["method"] in ("GET", "HEAD")
        return self._keys is not None and is_preflight(scope)

    def _identify(self, exchange: Exchange) -> Refusal | None:
        """The client's id, or ours, for vLLM in the headers. Bad ones are refused, like at OpenAI."""
        given = exchange.headers.get(REQUEST_ID)
        request_id = given if given is not None and _request_id(given) else uuid.uuid4().hex.encode()
        exchange.request_id = request_id.decode()
        if given is None:
            exchange.scope = {
                **exchange.scope,
                "headers": [*exchange.scope["headers"], (REQUEST_ID, request_id)],
            }
        if given is None or self._echo_request_id:
            exchange.extra.append((REQUEST_ID, request_id))
        return None if request_id == given or given is None else say.bad_request_id(MAX_REQUEST_ID)

    def _authenticate(self, exchange: Exchange) -> Refusal | None:
        key = self._caller(exchange.headers)
        if isinstance(key, Refusal):
            return key
        if key is not None:
            exchange.key = key
            state = {**exchange.scope.get("state", {}), "api_key_name": key.name}
            exchange.scope = {**exchange.scope, "state": state}
        return None

    def refuses(self, scope: Any) -> bool:
        """Whether this request is refused for any body."""
        return not self._is_open(scope) and isinstance(self._caller(dict(scope["headers"])), Refusal)

    def _caller(self, headers: dict[bytes, bytes]) -> Key | Refusal | None:
        """The caller's key; None if no keys are set up and no page is foreign."""
        if self._keys is None:
            stranger = browsers.refuse_host(headers, self._settings)
            if stranger is None and self._scope == "populations":  # vLLM's own settings cover the engine
                stranger = browsers.refuse_origin(headers, self._settings)
            return stranger
        given = read_key(headers)
        if not given:
            return say.missing_key()
        key = self._keys.find(given)
        if key is None:
            return say.invalid_key()
        if key.state != "active":
            return say.invalid_key(f"The API key '{key.name}' is {key.state}.")
        return key if key.allows(self._scope) else say.wrong_scope(key.name, self._scope)

    def _check_kind(self, exchange: Exchange) -> Refusal | None:
        control = self._scope == "populations" and exchange.scope["method"] == "POST"
        refusal = browsers.refuse_body_type(exchange.headers) if control else None
        return refusal or browsers.refuse_encoding(exchange.headers)

    def _check_size(self, exchange: Exchange) -> Refusal | None:
        """The announced size; the real one is counted too."""
        most = self._settings.max_body_bytes
        return say.body_too_large(most) if most is not None and announced_bytes(exchange.headers) > most else None

    async def _count_request(self, exchange: Exchange) -> Refusal | None:
        key = exchange.key
        if key is None or not key.limited:
            return None
        standing = await self._limits.admit(key)
        exchange.extra += standing.headers
        return over_limit(key, standing)

    async def _websocket(self, scope: Any, receive: Any, send: Any) -> None:
        key = self._caller(dict(scope["headers"]))
        if isinstance(key, Key) and key.limited:
            key = over_limit(key, await self._limits.admit(key)) or key
        if isinstance(key, Refusal):
            await receive()
            await send({"type": "websocket.close", "code": WEBSOCKET_REFUSED, "reason": key.reason})
            return
        with use(Account(self._settings.max_prompt_tokens)) as account:
            try:
                await self._app(scope, receive, send)
            finally:
                account.when_idle(partial(self._charge, key, account))

    def _charge(self, key: Key | None, account: Account) -> None:
        if key is not None and key.tokens_per_minute is not None and account.tokens:
            self._limits.charge(key, account.tokens)


def is_preflight(scope: Any) -> bool:
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


def announced_bytes(headers: dict[bytes, bytes]) -> int:
    """The body's size; 0 if it is not told."""
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


def read_key(headers: dict[bytes, bytes]) -> str:
    """The request's key, else "". x-api-key is for Anthropic's clients, served by vLLM too."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    given = key if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return given.strip().decode("latin-1")


def over_limit(key: Key, standing: Standing) -> Refusal | None:
    if standing.refused_by is None:
        return None
    quota = standing.requests if standing.refused_by == "requests" else standing.tokens
    return say.too_many_requests(key.name, standing.refused_by, quota.limit if quota else 0, standing.wait_s)
