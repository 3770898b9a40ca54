"""What a client's job may name of the driver's own: secrets of its environment, its files, its network, its store.

Clients are not the operator, with keys or without: without, any program of the machine reaches the driver. So secrets
and files are the operator's to name. Where keys are set, sources and providers are too; where none are, jobs may name
public addresses. What a name of the web leads to is looked at when it is connected to (`serve_app.addresses`); here
only what the job itself says.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from serve_app.addresses import PORTS, is_below
from serve_app.errors import BadSettings
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec, Provider
from serve_app.storage.filesystem import SCHEME, shown

# Schemes of the driver's own disk, by pyarrow and fsspec.
LOCAL = ("file", "local")
# Names of one kind of store.
FAMILIES = {"gcs": "gs", "abfss": "abfs", "s3a": "s3"}
# Where a URL of a cloud's store may lead: to that cloud. Other queries (endpoint_override) and hosts lead anywhere.
CLOUD_QUERY = re.compile(r"(region=[a-z0-9-]+)?")
AZURE_HOST = re.compile(r"(.+@)?[a-z0-9-]+(\.(dfs|blob)\.core\.windows\.net)?", re.IGNORECASE)


def check_allowed(spec: JobSpec, settings: DriverSettings) -> None:
    """Raise BadSettings naming the field and the operator's setting."""
    try:
        if spec.provider is not None:
            _check_provider(spec.provider, settings)
        if spec.source and not spec.source.startswith("job:"):
            _check_source(spec.source, settings)
    except BadSettings:
        raise
    except ValueError as error:  # a port that is none, half a bracket
        raise BadSettings(f"it holds a malformed URL: {error}") from error


def _check_provider(provider: Provider, settings: DriverSettings) -> None:
    if name := provider.api_key_env:
        address = settings.provider_keys.get(name)
        if address is None or not is_below(provider.base_url, address):
            raise BadSettings(
                f"the key in {name} may not be sent to {shown(provider.base_url)}: the operator "
                "names variables and addresses in the driver's `provider_keys`",
                field="provider.api_key_env",
            )
    named = _is_named(provider.base_url, (*settings.provider_urls, *settings.provider_keys.values()))
    refusal = settings.provider_reach.refusal_of_url(provider.base_url)
    if settings.access.key_files and not named:
        refusal = f"{shown(provider.base_url)} is none of the driver's `provider_urls`, where the operator names them"
    if refusal:
        raise BadSettings(refusal, field="provider.base_url")


def _check_source(source: str, settings: DriverSettings) -> None:
    scheme = SCHEME.match(source)
    kind = scheme[1].lower() if scheme is not None else "file"
    place = shown(source)
    refusal = ""
    if "::" in source:
        refusal = f"{place} chains file systems: give the file itself, by its path or URL, or upload it"
    elif _in_store(source, settings.store):
        refusal = f"{place} is in the driver's own store, whose files are no sources: upload the rows"
    elif kind in LOCAL:
        if not _in_folders(source, settings.source_folders):
            refusal = (
                f"{place} is a file of the driver's machine: upload it, give a URL, or have the operator "
                "add its folder to the driver's `source_folders`"
            )
    elif not _is_named(source, settings.source_urls):
        if settings.access.key_files or not _is_public(source, kind):
            refusal = f"{place} is not below any of the driver's `source_urls`, where the operator names them"
        elif kind in PORTS:
            refusal = settings.source_reach.refusal_of_url(source)
    if refusal:
        raise BadSettings(refusal, field="source")


def _is_named(url: str, named: Iterable[str]) -> bool:
    return any(is_below(url, one) for one in named)


def _is_public(source: str, kind: str) -> bool:
    """Whether the URL can only lead to a public web server, by what it says, or to the store of a known cloud."""
    if kind in PORTS:
        return True
    url = urlsplit(source)
    if FAMILIES.get(kind, kind) not in ("s3", "gs", "abfs") or not CLOUD_QUERY.fullmatch(url.query):
        return False
    return FAMILIES.get(kind, kind) != "abfs" or AZURE_HOST.fullmatch(url.netloc) is not None


def _in_folders(source: str, folders: tuple[str, ...]) -> bool:
    return any(_local(source).is_relative_to(_local(folder)) for folder in folders)


def _in_store(source: str, store: str) -> bool:
    """By the real path on a disk, by bucket and path elsewhere, whatever the account or endpoint."""
    (kind, place), (own_kind, own) = _place(source), _place(store)
    return kind == own_kind and f"{place}/".startswith(f"{own.rstrip('/')}/")


def _place(url: str) -> tuple[str, str]:
    scheme = SCHEME.match(url)
    if scheme is None or scheme[1].lower() in LOCAL:
        return "file", str(_local(url))
    kind, split = scheme[1].lower(), urlsplit(url)
    kind = FAMILIES.get(kind, kind)
    bucket = split.username or split.netloc if kind == "abfs" else split.netloc.rpartition("@")[2]
    if kind == "abfs" and "." in bucket:  # abfs://account.dfs.core.windows.net/container/path
        bucket = ""
    return kind, posixpath.normpath("/" + unquote(f"{bucket}/{split.path}").lstrip("/")).replace("//", "/")


def _local(path: str) -> Path:
    scheme = SCHEME.match(path)
    return Path(path[scheme.end() :] if scheme else path).expanduser().resolve()
