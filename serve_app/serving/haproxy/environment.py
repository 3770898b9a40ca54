"""Ray's environment variables for a server, the same on one machine and in Kubernetes.

Ray Serve 2.60 reads them in every process (`ray/serve/_private/constants.py`). RAY_SERVE_ENABLE_HA_PROXY chooses the
ingress: with 1, the default, HAProxy asks the replicas' own HTTP servers; with 0 Serve's proxy in Python does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from serve_app.serving.backpressure import BACKPRESSURE

INGRESS = "RAY_SERVE_ENABLE_HA_PROXY"
# How long a replica that stops still takes requests.
DRAINING = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"

EVERY_ADDRESS = "0.0.0.0"
NO_OPTIONS: Mapping[str, Any] = {}

BOTH = {
    # Without an engine no stream can finish, and its replacement would wait a whole drain for its GPUs.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # At Ray's 0.1 s the idle controller takes 7 % of a slow core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # A dead proxy is replaced after three checks; Ray's 10 s make that half a minute without an answer.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "3",
    # Each process wakes ten times a second otherwise, for numbers that are read every ten.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # One message may be a whole answer.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    # Ray's nice 15 would make engines wait for all else.
    "RAY_worker_niceness": "0",
    **BACKPRESSURE,
}
HAPROXY = {
    INGRESS: "1",
    # A request costs no hand-over between threads, and `send` waits for a slow client.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    # Each reload leaves the HAProxy of before to its open streams; Ray cuts them after 120 s.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "86400",
    # A client's idle connection may stay with an old HAProxy, which knows the replicas of then only. It tries each once
    # and then Serve's proxy, which knows the new ones.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_RETRIES": "64",
    # By default a day then. Idle connections to an old HAProxy are closed much sooner.
    "RAY_SERVE_PORT_QUARANTINE_S": "600",
}
PROXY = {
    INGRESS: "0",
    # gRPC streams were faster than actor calls (benchmarks/README.md).
    "RAY_SERVE_PROXY_USE_GRPC": "1",
}


def variables(given: Mapping[str, str], http_options: Mapping[str, Any] = NO_OPTIONS) -> dict[str, str]:
    """The variables for a config file's `http_options`, with `given` ones as they are."""
    # Ray's package of HAProxy is for Linux.
    usual = "1" if sys.platform == "linux" and suits_haproxy(http_options) else "0"
    chosen = BOTH | (HAPROXY if given.get(INGRESS, usual) == "1" else PROXY)
    return {name: given.get(name, value) for name, value in chosen.items()}


def suits_haproxy(http_options: Mapping[str, Any]) -> bool:
    """Whether HAProxy can stand for Serve's proxy: it has no TLS and no root path, and asks this node's replicas at the
    loopback address, where they must listen.
    """
    listens = http_options.get("host", EVERY_ADDRESS) in (EVERY_ADDRESS, "127.0.0.1", "localhost")
    return listens and not any(http_options.get(name) for name in ("ssl_keyfile", "ssl_certfile", "root_path"))


def direct_ingress(environment: Mapping[str, str]) -> bool:
    return environment.get(INGRESS, "0") == "1"
