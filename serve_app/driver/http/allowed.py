"""What a client's job may name of the driver's own: secrets of its environment and files of its machine.

Where no API keys are set, whoever reaches the driver is its operator, and may name anything.
"""

from __future__ import annotations

from pathlib import Path

from serve_app.errors import BadSettings
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec
from serve_app.storage.filesystem import SCHEME

# Schemes of the driver's own disk, by pyarrow and fsspec.
LOCAL = ("file", "local")


def check_allowed(spec: JobSpec, settings: DriverSettings) -> None:
    """Raise BadSettings naming the field and the operator's setting."""
    if not settings.access.key_files:
        return
    if spec.provider is not None and (name := spec.provider.api_key_env):
        address = settings.provider_keys.get(name)
        if address is None or not _below(spec.provider.base_url, address):
            raise BadSettings(
                f"the key in {name} may not be sent to {spec.provider.base_url}: the operator "
                "names variables and addresses in the driver's `provider_keys`",
                field="provider.api_key_env",
            )
    if spec.source and not spec.source.startswith("job:") and not _may_read(spec.source, settings.source_folders):
        raise BadSettings(
            f"{spec.source} is a file of the driver's machine: upload it, give a URL, or have the operator "
            "add its folder to the driver's `source_folders`",
            field="source",
        )


def _below(url: str, address: str) -> bool:
    return f"{url.rstrip('/')}/".startswith(f"{address.rstrip('/')}/")


def _may_read(source: str, folders: tuple[str, ...]) -> bool:
    if "::" in source:  # fsspec's chains: zip://name::file:///archive
        return False
    scheme = SCHEME.match(source)
    if scheme is not None and scheme[1].lower() not in LOCAL:
        return True
    path = Path(source[scheme.end() :] if scheme else source).expanduser().resolve()
    return any(path.is_relative_to(Path(folder).expanduser().resolve()) for folder in folders)
