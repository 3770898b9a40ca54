"""A replica's address, and the frames of its answers.

    answer = frame*       frame = length (4 bytes, big-endian) kind (1 byte) body (MessagePack)

An answer that ends whole is whole; HTTP tells. Silence is no sign of life: a server beats while a method works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from serve_app.schema import ReplicaInfo

# An answer's part, the method's error as (type, message), nothing.
VALUE, ERROR, BEAT = b"v", b"e", b"b"
HEAD_BYTES = 5
BEAT_S = 5.0
# The server's loop was never blocked as long; it is stopped or cut off.
SILENT_S = 30.0

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode


class Peer(msgspec.Struct, frozen=True):
    """`token` proves that Ray told the caller."""

    replica: ReplicaInfo
    url: str
    token: str

    def __repr__(self) -> str:
        return f"Peer({self.replica.replica_id!r}, {self.url!r})"


class Failure(NamedTuple):
    kind: str
    message: str


def frame(kind: bytes, body: bytes = b"") -> bytes:
    return len(body).to_bytes(4, "big") + kind + body
