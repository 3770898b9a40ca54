"""The package's config file, a copy of the repository's `config.yaml`, for folders without one.

Its folders, such as `store: runs`, are relative to the server's working directory.
"""

from __future__ import annotations

from pathlib import Path

import serve_app
from serve_app.errors import BadSettings, StoreError

NAME = "config.yaml"


def packaged_config() -> Path:
    """The installed package's file; a test compares it with the repository's."""
    return Path(serve_app.__path__[0]) / NAME


def find_config(given: Path | None) -> Path:
    """The given file, else config.yaml here, else the package's."""
    if given is not None:
        return given
    here = Path(NAME)
    return here if here.exists() else packaged_config()


def write_config(path: Path, *, force: bool = False) -> None:
    """Write the package's file. Raises BadSettings if `path` exists and not `force`, or StoreError."""
    try:
        with open(path, "w" if force else "x") as file:
            file.write(packaged_config().read_text())
    except FileExistsError as error:
        raise BadSettings(f"{path} is there already: --force writes over it") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
