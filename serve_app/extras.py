"""Packages that not everybody needs, each with the extra of pyproject.toml that brings it."""

from __future__ import annotations

import importlib.util

from serve_app.errors import BadSettings

PLOTS, OPENAI = "plots", "openai"
PACKAGES = {PLOTS: "matplotlib", OPENAI: "openai"}
USES = {PLOTS: "reports draw their charts", OPENAI: "`serve-app check` asks a server"}


def require(extra: str) -> None:
    """Raise BadSettings, which says how to install it, unless the package of an extra is there. Imports nothing."""
    if importlib.util.find_spec(PACKAGES[extra]) is None:
        raise missing(extra)


def missing(extra: str) -> BadSettings:
    """The error of somebody who needs an extra and has not installed it."""
    return BadSettings(
        f"{PACKAGES[extra]} is not installed, with which {USES[extra]}: pip install 'serve-app[{extra}]'"
    )
