"""Prometheus metrics of requests, exported by Ray; no-op outside Ray.

Labels are few and fixed: a route's template, "other" for unknown routes and methods, never client text.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray

from serve_app.engine.protocol import ASGIApp
from serve_app.serving.gate.request_log import status

if TYPE_CHECKING:
    from serve_app.serving.gate.exchange import Exchange

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER = "other"
# From a refusal to a long generation.
DURATIONS_S = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]


class RequestMetrics:
    """`name` labels the application `app`, whose FastAPI routes are used."""

    def __init__(self, name: str, app: ASGIApp) -> None:
        self._name = name
        self._app = app

    def record(self, exchange: Exchange) -> None:
        if not ray.is_initialized():
            return
        method = exchange.scope["method"]
        labels = {"app": self._name, "route": self.route(exchange.scope)}
        self._requests.inc(
            tags={**labels, "method": method if method in METHODS else OTHER, "status": str(status(exchange))}
        )
        self._seconds.observe(time.monotonic() - exchange.started, tags=labels)
        if exchange.refusal is not None:
            self._refused.inc(tags={"app": self._name, "reason": exchange.refusal.reason})
        for kind in ("prompt", "completion"):
            if tokens := getattr(exchange.account, f"{kind}_tokens"):
                self._tokens.inc(tokens, tags={"app": self._name, "kind": kind})

    def route(self, scope: Any) -> str:
        """The route's template, also for requests refused before routing."""
        root = scope.get("root_path", "")
        if (template := getattr(scope.get("route"), "path", None)) is not None:
            return f"{root}{template}"
        path = scope["path"].removeprefix(root)
        return f"{root}{path}" if path in self._plain_routes else OTHER

    @cached_property
    def _plain_routes(self) -> frozenset[str]:
        paths = (getattr(route, "path", "") for route in getattr(self._app, "routes", ()))
        return frozenset(path for path in paths if "{" not in path)

    @cached_property
    def _requests(self) -> Any:
        from ray.util.metrics import Counter

        return Counter("serve_app_http_requests", "Requests that ended.", ("app", "route", "method", "status"))

    @cached_property
    def _refused(self) -> Any:
        from ray.util.metrics import Counter

        return Counter("serve_app_http_refused", "Requests that the gate answered, by its reason.", ("app", "reason"))

    @cached_property
    def _tokens(self) -> Any:
        from ray.util.metrics import Counter

        return Counter("serve_app_http_tokens", "Tokens of HTTP requests, prompt and completion.", ("app", "kind"))

    @cached_property
    def _seconds(self) -> Any:
        from ray.util.metrics import Histogram

        return Histogram("serve_app_http_request_seconds", "From request to end.", DURATIONS_S, ("app", "route"))
