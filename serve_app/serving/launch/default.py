"""The config file that comes with the package, for a folder that has none: `config.yaml` of the repository, copied.

Its folders, such as `store: runs`, are relative to where the server is started.
"""

from __future__ import annotations

from pathlib import Path

import serve_app
from serve_app.errors import BadSettings, StoreError

NAME = "config.yaml"


def packaged_config() -> Path:
    """The file in the installed package; a test compares it with the repository's."""
    return Path(serve_app.__path__[0]) / NAME


def find_config(given: Path | None) -> Path:
    """The file that was given, or else config.yaml of the present folder, or else the package's."""
    if given is not None:
        return given
    here = Path(NAME)
    return here if here.exists() else packaged_config()


def write_config(path: Path, *, force: bool = False) -> None:
    """Write the package's file to `path`. Raises BadSettings if one is there and not `force`, or StoreError."""
    try:
        with open(path, "w" if force else "x") as file:
            file.write(packaged_config().read_text())
    except FileExistsError as error:
        raise BadSettings(f"{path} is there already: --force writes over it") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
