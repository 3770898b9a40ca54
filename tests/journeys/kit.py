"""A person at a terminal: types commands, reads what comes, and says what is missing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pexpect

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("serve-app"))
PATIENCE_S = 240
# What a terminal does with colours and the cursor is no text.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass
class Person:
    """Works in `folder`. A journey's steps are counted, and what went wrong in them is kept."""

    folder: Path
    base_url: str
    steps: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One thing that the person wants; the next ones are tried even if it fails."""
        self.steps.append(name)
        try:
            yield
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:1500]}")

    def run(self, *arguments: str, code: int = 0) -> str:
        """Type a `serve-app` command and read all that it prints. Raises AssertionError for another exit code."""
        return _read_to_end(self.start(*arguments), code, f"serve-app {' '.join(arguments)}")

    def start(self, *arguments: str) -> pexpect.spawn[str]:
        """Type a command that goes on; it is read by the caller."""
        environment = {"SERVE_APP_BASE_URL": self.base_url, "TERM": "xterm-256color", "COLUMNS": "100"}
        return pexpect.spawn(
            COMMAND,
            list(arguments),
            cwd=str(self.folder),
            env={**_environment(), **environment},
            dimensions=(40, 100),
            encoding="utf-8",
            timeout=PATIENCE_S,
        )

    def interrupt(self, child: pexpect.spawn[str], code: int) -> str:
        """Press Ctrl-C and read the rest."""
        child.sendintr()
        return _read_to_end(child, code, "what was interrupted")


def _read_to_end(child: pexpect.spawn[str], code: int, what: str) -> str:
    child.expect(pexpect.EOF)
    child.close()
    text = plain(str(child.before))
    assert child.exitstatus == code, f"{what} ended with {child.exitstatus}:\n{text}"
    return text


def plain(text: str) -> str:
    """What a person sees, but for colours."""
    return _CONTROL.sub("", text)


def says(text: str, *wanted: str) -> None:
    """Raises AssertionError for a text that is not there; where lines were broken does not matter."""
    flat = re.sub(r"\s+", " ", text)
    missing = [one for one in wanted if one not in flat]
    assert not missing, f"does not say {missing}:\n{text}"


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SERVE_APP"))}
