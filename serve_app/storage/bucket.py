"""A bucket of S3, Google Cloud Storage or Azure, with conditional writes.

Knows requests and their errors. Does not know folders (see `filesystem.py`). Arrow reads large objects.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import parse_qs

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store, from_url
from pyarrow.fs import FileSystem, S3FileSystem

from serve_app.errors import FileChanged

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

# Writers retry for minutes themselves; this covers lost connections.
RETRY: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
CLIENT: Any = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=30), "allow_http": True}
# Buffer size, and the size of each uploaded piece.
PIECE_BYTES = 8 << 20
BUFFER_BYTES = 1 << 20
# Pieces of one object on their way: more (obstore's own: 12) would keep a fast writer's data in memory.
PIECES = 2
# The reason in a server's XML answer.
SAID = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)

# An object's version, in the server's terms.
Version = dict[str, str]


class Bucket:
    """Objects by key. All methods raise OSError."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def at(cls, url: str, filesystem: FileSystem) -> Bucket:
        """The bucket of any object's URL, which Arrow reads as `filesystem`.

        S3 URLs take `endpoint_override`, `scheme` and `region` in the query, as for Arrow. Raises ValueError.
        """
        base, _, query = url.partition("?")
        place = "/".join(base.split("/")[:3]).replace("gcs://", "gs://")  # scheme and bucket
        options = {name: values[-1] for name, values in parse_qs(query).items()}
        endpoint = options.get("endpoint_override", "")
        if endpoint and "://" not in endpoint:
            endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
        try:
            if isinstance(filesystem, S3FileSystem):
                return cls(_s3(place, endpoint, filesystem.region))
            config: Any = {"base_url": endpoint} if endpoint else None
            return cls(from_url(place, config=config, client_options=CLIENT, retry_config=RETRY))
        except BaseError as error:
            raise ValueError(_said(error)) from error

    def get(self, key: str) -> tuple[bytes, Version]:
        """Raises FileNotFoundError."""
        with _os_errors():
            found = obstore.get(self._store, key)
            return bytes(found.bytes()), _version(found.meta)

    def put(self, key: str, data: Any) -> None:
        """Write or overwrite the object. `data` is a buffer."""
        with _os_errors():
            obstore.put(self._store, key, memoryview(data).cast("B"), chunk_size=PIECE_BYTES, max_concurrency=PIECES)

    def put_if(self, key: str, data: bytes, seen: Version | None) -> Version:
        """Write the object if its version is `seen` (None: absent). Raises FileChanged."""
        mode: Any = "create" if seen is None else cast("UpdateVersion", seen)
        with _os_errors():
            try:
                return _version(obstore.put(self._store, key, data, mode=mode))
            except (AlreadyExistsError, PreconditionError) as error:
                refusal = error
        # A retry after a lost answer finds its own write.
        with suppress(FileNotFoundError):
            found, version = self.get(key)
            if found == data:
                return version
        raise FileChanged(_said(refusal)) from refusal

    def delete(self, key: str) -> None:
        with _os_errors(), suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    @contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        """An object written in pieces, which appears when the block ends without an error."""
        with _os_errors():
            upload = obstore.open_writer(self._store, key, buffer_size=PIECE_BYTES, max_concurrency=PIECES)
            raw = _Upload(upload)
            with io.BufferedWriter(raw, BUFFER_BYTES) as file:
                try:
                    yield file
                except BaseException:
                    raw.abandoned = True
                    raise
            upload.close()  # otherwise it never appears


class _Upload(io.RawIOBase):
    abandoned = False

    def __init__(self, upload: Any) -> None:
        self._upload = upload

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.abandoned:
            self._upload.write(bytes(data))  # copied: obstore sends it later, and the caller reuses its buffer
        return memoryview(data).nbytes


def _s3(place: str, endpoint: str, region: str) -> S3Store:
    """Finds keys as Arrow does: environment, profile, web identity, container or machine."""
    config: Any = {"region": region or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
    return S3Store.from_url(
        place, config=config, client_options=CLIENT, retry_config=RETRY, credential_provider=_profile()
    )


def _profile() -> Any:
    """A provider of keys in ~/.aws, which only boto3 reads; None without any."""
    files = [os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), "~/.aws/config"]
    if "AWS_ACCESS_KEY_ID" in os.environ or "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ:
        return None
    if "AWS_PROFILE" not in os.environ and not any(os.path.exists(os.path.expanduser(file)) for file in files):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise ValueError(
            "keys in ~/.aws are read by boto3: pip install boto3, or give them in AWS_… variables"
        ) from error
    return Boto3CredentialProvider()


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(_said(error)) from error
    except BaseError as error:
        raise OSError(_said(error)) from error


def _said(error: Exception) -> str:
    """The server's reason, else the first paragraph."""
    text = str(error)
    found = SAID.search(text)
    return found[1] if found else text.partition("\n\n")[0]


def _version(meta: Any) -> Version:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}
