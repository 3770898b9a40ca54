"""Optional packages, each with its extra in pyproject.toml."""

from __future__ import annotations

import importlib.util

from serve_app.errors import BadSettings

PLOTS, OPENAI = "plots", "openai"
PACKAGES = {PLOTS: "matplotlib", OPENAI: "openai"}
USES = {PLOTS: "reports draw their charts", OPENAI: "`serve-app check` asks a server"}


def require(extra: str) -> None:
    """Raise BadSettings with the install command unless the extra's package is installed. Imports nothing."""
    if importlib.util.find_spec(PACKAGES[extra]) is None:
        raise missing(extra)


def missing(extra: str) -> BadSettings:
    """The error for a missing extra."""
    return BadSettings(
        f"{PACKAGES[extra]} is not installed, with which {USES[extra]}: pip install 'serve-app[{extra}]'"
    )
