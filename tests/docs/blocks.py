"""Runs the code blocks of a page, as a reader would, against a server.

A comment just above a block says what is to be done with it, where that is not plain from its language:

    <!-- model: NAME -->    JSON or YAML is a value of this model (values.py)
    <!-- file: NAME -->     the block is saved under this name; a Python file is also executed
    <!-- parse -->          commands are not run: the real command line only reads their arguments
    <!-- skip: reason -->   nothing is done; the reason is for readers of the source

Otherwise Python is executed, all blocks of a page in one namespace; a shell line is executed in the page's folder
(`make` only prints what it would do); YAML with `applications` is loaded as a Serve config file.
Knows languages and the command line. Does not know pytest, nor how the server is started.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

from tests.docs.values import check_config, check_value

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DEFAULT_URL = "http://127.0.0.1:8000"
LANGUAGES = ("bash", "python", "json", "yaml", "toml", "csv")
# Diagrams, tables and what a command prints for people.
PROSE = ("text",)
_DIRECTIVE = re.compile(r"<!-- (model|file|parse|skip)(?:: (.+?))? -->\n\s*$")
# What a shell does beyond starting one program.
_SHELL = re.compile(r"[|><;&$`*]")
_VARIABLE = re.compile(r"[A-Z_]+=")
# Commands that would take the process over, or start real engines.
NOT_RUN = ("up", "serve", "demo", "check")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, what it says, and what is to be done with it."""

    page: Path
    line: int
    language: str
    text: str
    directive: str = ""
    argument: str = ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page with blocks that are checked."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """A page's blocks in order, but those of PROSE."""

    def evaluate(example: Example) -> None:
        raise NotImplementedError

    document = Sybil([CodeBlockParser(language, evaluate) for language in LANGUAGES]).parse(page)
    found = []
    for example in document.examples():
        directive = _DIRECTIVE.search(document.text[: example.start])
        name, argument = (directive[1], directive[2] or "") if directive else ("", "")
        language = document.text[example.start :].lstrip().splitlines()[0].lstrip("`").strip()
        found.append(Block(page, example.line, language, str(example.parsed), name, argument))
    return found


class Reader:
    """Does what a page says, in `folder`, against the server at `base_url`."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self._folder = folder
        self._base_url = base_url
        self._namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        """Raises whatever is wrong with the block."""
        if block.directive == "skip":
            return
        text = self._addressed(block.text)
        if block.directive == "file":
            path = self._folder / block.argument
            if block.argument.startswith("examples/"):
                assert path.read_text() == block.text, f"{block.argument} is not what the page shows"
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        match block.language:
            case "python":
                self._python(text, block)
            case "bash":
                for line in commands(text):
                    self._shell(line, parse_only=block.directive == "parse")
            case "yaml":
                self._value(yaml.safe_load(text), block)
            case "json":
                self._value(json.loads(text), block)
            case "toml":
                tomllib.loads(text)

    def _addressed(self, text: str) -> str:
        port = self._base_url.rpartition(":")[2]
        return text.replace(DEFAULT_URL, self._base_url).replace("localhost:8000", f"127.0.0.1:{port}")

    def _python(self, text: str, block: Block) -> None:
        name = str(self._folder / block.argument) if block.directive == "file" else block.place
        code = compile("\n" * (block.line if block.directive != "file" else 0) + text, name, "exec")
        with chdir(self._folder), unprinted():
            exec(code, self._namespace)

    def _value(self, value: Any, block: Block) -> None:
        if block.directive == "model":
            check_value(block.argument, value)
        elif isinstance(value, dict) and "applications" in value:
            check_config(value, self._folder)
        elif block.directive != "file":
            raise AssertionError("say with <!-- model: NAME --> what this is")

    # --- the shell ---

    def _shell(self, line: str, *, parse_only: bool) -> None:
        words = shlex.split(line.replace("\\\n", ""), comments=True)
        variables = dict(word.split("=", 1) for word in takewhile(_VARIABLE.match, words))
        words = words[len(variables) :]
        if not words:
            return
        if words[0].startswith(".venv/bin/"):  # of a clone; here, whatever environment this is
            words[0] = Path(words[0]).name
            assert (BIN / words[0]).exists(), f"no command {words[0]}"
            if words[0] != "python":
                return
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
        elif words[0] == "serve-app" and (parse_only or words[1] in NOT_RUN or "--help" in words):
            parsed(words[1:])
        elif parse_only:
            raise AssertionError(f"cannot parse {words[0]}: skip it, with a reason")
        elif words[0] == "serve-app" and not _SHELL.search(_unquoted(line)):
            self._serve_app(words[1:], variables)
        else:
            self._bash(line)

    def _serve_app(self, words: list[str], variables: dict[str, str]) -> None:
        """In this process: a dozen commands would import the same libraries a dozen times."""
        from typer.main import get_command

        from serve_app.cli import app

        if "--base-url" in known_options(words):
            words = [*words, "--base-url", self._base_url]
        with chdir(self._folder), unprinted(), mock.patch.dict(os.environ, variables):
            get_command(app).main(words, prog_name="serve-app", standalone_mode=False)

    def _bash(self, line: str) -> None:
        env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self._folder, env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{line}\n{done.stdout}{done.stderr}")


def unprinted() -> redirect_stdout[TextIOWrapper]:
    """Standard output, bytes too, goes nowhere."""
    return redirect_stdout(TextIOWrapper(BytesIO()))


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block: lines, joined where one goes on or a quotation or here-document is open."""
    open_lines: list[str] = []
    end = ""
    for line in text.splitlines():
        open_lines.append(line)
        if end:
            if line != end:
                continue
            end = ""
        elif here := re.search(r"<<-?\s*'?(\w+)'?", line):
            end = here[1]
            continue
        elif line.endswith("\\") or not _whole("\n".join(open_lines)):
            continue
        if joined := "\n".join(open_lines).strip():
            yield joined
        open_lines = []
    if open_lines:
        raise AssertionError(f"a command has no end: {open_lines[0]}")


def _whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def _unquoted(line: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", line)


def parsed(words: list[str]) -> None:
    """Have the real command line read the arguments. Raises its usage errors."""
    from typer.main import get_command

    from serve_app.cli import app

    command: Any = get_command(app)
    words = [word for word in words if word != "--help"]
    name = "serve-app"
    while True:
        context = command.make_context(name, list(words))
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not getattr(command, "commands", None) or not rest:
            return
        name, command, words = command.resolve_command(context, rest)


def known_options(words: list[str]) -> set[str]:
    """Options of the command that the words name."""
    from typer.main import get_command

    from serve_app.cli import app

    command: Any = get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return {option for parameter in command.params for option in parameter.opts}
