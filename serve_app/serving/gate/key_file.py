"""Writes key files (format: `keys.py`): one writer at a time; readers see the old or the new file."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml
from pydantic import ValidationError

from serve_app.atomic import atomic_write
from serve_app.errors import BadSettings
from serve_app.serving.gate.keys import Key, hash_key, read_keys

PREFIX = "sk-"


def create_key(file: Path, name: str, **options: Any) -> str:
    """Append a new key and return it; it is never shown again. `options` are fields of `Key`. Raises BadSettings for a
    taken name or a wrong option.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    with _locked(file):
        keys = read_keys(file) if file.exists() else ()
        if any(other.name == name for other in keys):
            raise BadSettings(f"{file} has a key named '{name}' already; choose another name", field="name")
        now = datetime.now(UTC).replace(microsecond=0)
        try:
            entry = Key.model_validate({"name": name, "sha256": hash_key(key), "created": now, **options})
        except ValidationError as error:
            first = error.errors()[0]
            raise BadSettings(first["msg"], field=".".join(map(str, first["loc"]))) from error
        _write(file, (*keys, entry))
    return key


def revoke_key(file: Path, name: str) -> Key:
    """Disable a key; its entry stays, for logs. Raises BadSettings for an unknown name."""
    with _locked(file):
        keys = read_keys(file)
        revoked = [key.model_copy(update={"disabled": True}) for key in keys if key.name == name]
        if not revoked:
            raise BadSettings(f"{file} has no key named '{name}'; `serve-app keys list` shows the names", field="name")
        _write(file, tuple(revoked[0] if key.name == name else key for key in keys))
    return revoked[0]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One writer at a time. Locks the folder, since the file is replaced."""
    try:
        folder = os.open(file.parent, os.O_RDONLY)
    except OSError as error:
        raise BadSettings(f"key file {file}: {error.strerror or error}; create the folder first") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(file: Path, keys: Sequence[Key]) -> None:
    """Replace the file, owner-readable only; comments are lost."""
    entries = {"keys": [key.model_dump(mode="json", exclude_defaults=True) for key in keys]}
    if file.suffix == ".json":
        content = msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n"
    else:
        content = yaml.safe_dump(entries, sort_keys=False).encode()
    with atomic_write(file.resolve(), mode=0o600) as output:  # keeps links
        output.write(content)
