"""Which addresses a job may make this machine connect to.

A job names URLs of sources and providers. This machine reaches addresses that the job's sender may not: itself, its
network, the cloud's metadata service (server-side request forgery, CWE-918). Jobs may use public addresses and places
named by the operator. The connected address counts: DNS answers change, and servers redirect. Does not know who
connects.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, unquote, urlsplit

Place = tuple[str, int]
PORTS = {"http": 80, "https": 443}
# They hand out this machine's credentials: AWS (also ECS and EKS), GCP, Azure, Alibaba, Oracle.
METADATA = frozenset(
    map(
        ip_address,
        ("169.254.169.254", "fd00:ec2::254", "169.254.170.2", "169.254.170.23", "fd00:ec2::23", "100.100.100.200",
         "192.0.0.192"),
    )
)  # fmt: skip
# Translates to IPv4 (RFC 6052).
NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Reach:
    """Public addresses, and `places` (host, port) named by the operator in `setting`, except METADATA."""

    places: frozenset[Place] = frozenset()
    setting: str = "source_urls"

    @classmethod
    def of(cls, urls: Iterable[str], setting: str) -> Reach:
        """Reach of the operator's URLs; those without a host, such as s3://, add nothing."""
        split = [urlsplit(url) for url in urls]
        return cls(frozenset(place_of(url) for url in split if url.scheme.lower() in PORTS), setting)

    def refusal(self, host: str, port: int, address: str) -> str:
        """Why connecting to `address`, resolved from `host`, is refused; "" if allowed."""
        ip = _innermost(address)
        shown = host if host == address else f"{host} ({address})"
        if ip in METADATA:
            return f"{shown} is a metadata service, which jobs never reach"
        if (ip.is_global and not ip.is_multicast) or (_plain(host), port) in self.places:
            return ""
        return f"{shown} is no public address: the operator can allow it in the driver's `{self.setting}`"

    def refusal_of_url(self, url: str) -> str:
        """The same for a URL with an address as host; "" for a name, which is resolved later."""
        host, port = place_of(urlsplit(url))
        return self.refusal(host, port, host) if is_address(host) else ""


PUBLIC = Reach()


def place_of(url: SplitResult) -> Place:
    """A URL's lower-case host and port. Raises ValueError for an invalid port."""
    return _plain(url.hostname or ""), url.port or PORTS.get(url.scheme.lower(), 0)


def is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_below(url: str, above: str) -> bool:
    """Whether `url` is `above` or below it.

    Queries of http(s) may be signatures and are ignored. Other queries locate a store and must be equal.
    """
    one, other = urlsplit(url), urlsplit(above)
    web = one.scheme.lower() in PORTS
    if one.scheme.lower() != other.scheme.lower() or place_of(one) != place_of(other):
        return False
    if (one.username, one.password) != (other.username, other.password) or (not web and one.query != other.query):
        return False
    folder = _path(other).rstrip("/") + "/"
    return (_path(one) + "/").startswith(folder)


def _path(url: SplitResult) -> str:
    return posixpath.normpath("/" + unquote(url.path).lstrip("/"))


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _innermost(address: str) -> IPv4Address | IPv6Address:
    """The address, or the IPv4 address embedded in it."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if inner := ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1]):
            return inner
        if ip in NAT64 or (int(ip) < 1 << 32 and int(ip) > 1):  # the latter are IPv4-compatible (RFC 4291, 2.5.5.1)
            return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
