"""What a web page of somebody else may not do by the browser of somebody who reaches this server.

Without keys, reaching the server is all that a client must do, and every page in a client's browser reaches it too.

- Such a page can point its own name at this address after it was loaded (DNS rebinding), and has then its origin. The
  request's Host must be a name that nobody outside owns, or one of `allowed_hosts`.
- It can send "simple" requests without asking first (Fetch standard, CORS-safelisted). So on control routes a request
  that names another Origin is refused, as by Go's net/http.CrossOriginProtection, and bodies must be JSON or a form.

Where keys are set, a page has none, and only bodies are looked at.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Mapping
from functools import cache

from serve_app.serving.gate import refusal as say
from serve_app.serving.gate.refusal import Refusal
from serve_app.settings import AccessSettings

Headers = Mapping[bytes, bytes]

# Endings that no public registry gives away: RFC 6761, RFC 6762, ICANN's .internal, and a cluster's own.
PRIVATE_ENDINGS = (".localhost", ".local", ".internal", ".svc")
BODY_TYPES = ("application/json", "multipart/form-data")


def refuse_host(headers: Headers, settings: AccessSettings) -> Refusal | None:
    """A request for a name that may be somebody else's. Browsers always send a Host: one without is none of theirs."""
    host = headers.get(b"host", b"").decode("latin-1")
    return None if not host or is_known(host_name(host), settings.allowed_hosts) else say.unknown_host(host)


def refuse_origin(headers: Headers, settings: AccessSettings) -> Refusal | None:
    """A request by a page that this server did not send, whatever its method."""
    if (given := headers.get(b"origin")) is None:
        return None
    origin, allowed = given.decode("latin-1").lower(), settings.allowed_origins
    own = headers.get(b"host", b"").decode("latin-1").lower()
    if "*" in allowed or origin in allowed or (own and origin.partition("://")[2] == own):
        return None
    return say.foreign_origin(origin)


def refuse_encoding(headers: Headers) -> Refusal | None:
    """A compressed body: nothing here unpacks one."""
    coding = headers.get(b"content-encoding", b"").strip().lower()
    return None if coding in (b"", b"identity") else say.encoded_body(coding.decode("latin-1"))


def refuse_body_type(headers: Headers) -> Refusal | None:
    """A body that is neither JSON nor a form. One without a type a page can send as well."""
    if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return None
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    return None if kind in BODY_TYPES else say.unsupported_body(kind, BODY_TYPES)


def host_name(host: str) -> str:
    """A Host without its port, in small letters."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).removesuffix(".")


def is_known(name: str, allowed: Collection[str]) -> bool:
    """Whether the name cannot lead a browser here unless somebody here meant it to.

    `allowed` is as Django's ALLOWED_HOSTS: names, `.example.com` for all below that one, `*` for any.
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
