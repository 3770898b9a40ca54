"""API keys: a file of names, hashes and limits, read by the server and written by `serve-app keys`.

    keys:
      - name: alice                      # what logs and limits call the key
        sha256: 5e88…                    # of the whole key, in hex
        created: 2026-11-21T10:00:00Z
        expires: 2027-11-21T00:00:00Z    # optional, as all that follow
        disabled: true                   # revoked
        scopes: [inference]              # of inference, populations; default: all
        requests_per_minute: 600
        tokens_per_minute: 100000        # prompt and completion

YAML, or JSON if the name ends in `.json`; a mounted secret is such a file. Several are read as one.

The hash is plain SHA-256, not salted or slow: a key is 256 random bits, out of reach of dictionaries and guessing, and
a slow hash would cost each request its time. Keys are looked up by hash, so timing tells only about a hash that nobody
can choose.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml
from pydantic import AwareDatetime, Field, ValidationError

from serve_app.bounded_yaml import load
from serve_app.errors import BadSettings
from serve_app.fields import Frozen

logger = logging.getLogger(__name__)

Scope = Literal["inference", "populations"]
# Delay until a revoked key stops working.
CHECK_EVERY_S = 2.0


class Key(Frozen):
    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    disabled: bool = False
    scopes: tuple[Scope, ...] | None = None
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)

    @property
    def limited(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    @property
    def state(self) -> Literal["active", "revoked", "expired"]:
        if self.disabled:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= datetime.now(UTC) else "active"

    def allows(self, scope: str) -> bool:
        return self.scopes is None or scope in self.scopes


class _File(Frozen):
    keys: tuple[Key, ...] = ()


class KeyRing:
    """Keys of some files, reloaded on change."""

    def __init__(self, files: Sequence[str | Path], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises BadSettings for a missing or wrong file, so that no server starts open by accident."""
        self._files = [Path(file) for file in files]
        self._clock = clock
        self._next_check = clock() + CHECK_EVERY_S
        self._seen = [_signature(file) for file in self._files]
        self._keys = _by_hash(self._files)

    def find(self, key: str) -> Key | None:
        """The key's entry in any state, else None."""
        if self._clock() >= self._next_check:
            self._refresh()
        return self._keys.get(hash_key(key))

    def _refresh(self) -> None:
        self._next_check = self._clock() + CHECK_EVERY_S
        seen = [_signature(file) for file in self._files]
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = _by_hash(self._files)
        except BadSettings as error:  # half an edit must not lock clients out
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("read %d API keys anew", len(self._keys))


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path) -> tuple[Key, ...]:
    """A file's entries. Raises BadSettings with file, entry and field."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadSettings(f"key file {file}: {error.strerror or error}") from error
    try:
        document: Any = _decode(content, file.suffix) if content.strip() else None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadSettings(f"key file {file} cannot be read: {error}") from error
    try:
        keys = _File.model_validate({} if document is None else document).keys
    except ValidationError as error:
        first = error.errors()[0]
        raise BadSettings(f"key file {file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return keys


def _decode(content: bytes, suffix: str) -> Any:
    if suffix == ".json":
        return msgspec.json.decode(content)
    try:
        return load(content)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _by_hash(files: Sequence[Path]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    names: dict[str, Path] = {}
    for file in files:
        for key in read_keys(file):
            if key.name in names:
                raise BadSettings(
                    f"key file {file}: the name '{key.name}' is in {names[key.name]} too; names are unique"
                )
            if key.sha256 in keys:
                raise BadSettings(f"key file {file}: '{key.name}' is the same key as '{keys[key.sha256].name}'")
            names[key.name] = file
            keys[key.sha256] = key
    return keys


def _signature(file: Path) -> tuple[int, int, int] | None:
    """Changes with the file; mounted secrets are links that Kubernetes re-points."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
