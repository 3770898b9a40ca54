"""Limits what foreign web pages may do through the browser of somebody who reaches this server.

Without keys, reaching the server is all a client needs, and every page in a client's browser can.

- A page can point its own name at this address after loading (DNS rebinding) and so share its origin. The request's
  Host must be a name that no outsider owns, or one of `allowed_hosts`.
- It can send "simple" requests unasked (Fetch standard, CORS-safelisted). Control routes therefore refuse another
  Origin, like Go's net/http.CrossOriginProtection, and take only JSON or forms as bodies.

Pages have no keys, so with keys only bodies are checked.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from functools import cache, lru_cache

from serve_app.serving.gate import refusal as say
from serve_app.serving.gate.refusal import Refusal
from serve_app.settings import AccessSettings

Headers = Mapping[bytes, bytes]

# Endings never registered publicly: RFC 6761, RFC 6762, ICANN's .internal, cluster names.
PRIVATE_ENDINGS = (".localhost", ".local", ".internal", ".svc")
BODY_TYPES = ("application/json", "multipart/form-data")


def refuse_host(headers: Headers, settings: AccessSettings) -> Refusal | None:
    """Refuse a name that may be foreign. Browsers always send a Host, so requests without one pass."""
    host = headers.get(b"host", b"").decode("latin-1")
    return None if not host or is_known(host_name(host), settings.allowed_hosts) else say.unknown_host(host)


def refuse_origin(headers: Headers, settings: AccessSettings) -> Refusal | None:
    """Refuse a request of another server's page, with any method."""
    if (given := headers.get(b"origin")) is None:
        return None
    origin, allowed = given.decode("latin-1").lower(), settings.allowed_origins
    own = headers.get(b"host", b"").decode("latin-1").lower()
    if "*" in allowed or origin in allowed or (own and origin.partition("://")[2] == own):
        return None
    return say.foreign_origin(origin)


def refuse_encoding(headers: Headers) -> Refusal | None:
    """Refuse compressed bodies: nothing here unpacks them."""
    coding = headers.get(b"content-encoding", b"").strip().lower()
    return None if coding in (b"", b"identity") else say.encoded_body(coding.decode("latin-1"))


def refuse_body_type(headers: Headers) -> Refusal | None:
    """Refuse bodies except JSON and forms; pages can also send untyped ones."""
    if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return None
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    return None if kind in BODY_TYPES else say.unsupported_body(kind, BODY_TYPES)


def host_name(host: str) -> str:
    """A lower-case Host without its port."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).removesuffix(".")


@lru_cache(maxsize=1024)
def is_known(name: str, allowed: tuple[str, ...]) -> bool:
    """Whether nobody outside can have pointed the name here. `allowed` follows Django's ALLOWED_HOSTS: names,
    `.example.com` for all below it, `*` for any.
    """
    if "." not in name or name.endswith(PRIVATE_ENDINGS) or name == _own_name() or _is_address(name):
        return True
    return any(
        entry == "*" or name == entry.lower().lstrip(".") or (entry.startswith(".") and name.endswith(entry.lower()))
        for entry in allowed
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@cache
def _own_name() -> str:
    return socket.gethostname().lower()
