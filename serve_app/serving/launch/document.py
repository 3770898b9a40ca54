"""A YAML file with its fields' lines, to locate mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from serve_app.bounded_yaml import load
from serve_app.errors import BadSettings
from serve_app.mistakes import Mistake, sharpest
from serve_app.mistakes import Path as Place


class Document:
    def __init__(self, path: Path) -> None:
        """Raises BadSettings for a file that is unreadable, not YAML, or empty, or repeats a field."""
        self.path = path
        self._lines: dict[Place, int] = {}
        self._twice: list[Mistake] = []
        try:
            text = path.read_text()
            self.data: dict[Any, Any] = load(text)
            node = yaml.compose(text, yaml.CSafeLoader)
        except OSError as error:
            raise BadSettings(f"{path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise BadSettings(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, or too large
            raise BadSettings(f"{path} is not YAML: {error}") from error
        if not isinstance(self.data, dict):
            raise BadSettings(f"{path} is not a Serve config file: it has no fields")
        self._note(node, ())
        self.refuse(self._twice)

    def refuse(self, mistakes: Iterable[Mistake], kind: type[BadSettings] = BadSettings) -> None:
        """Raise `kind` with a line per mistake, in file order, if any."""
        found = sorted(sharpest(mistakes), key=lambda one: self.line(one.path))
        if found:
            raise kind("\n".join(f"{self.where(one.path)}: {one}" for one in found))

    def line(self, path: Place) -> int:
        """The field's line; for a missing one, where it should be."""
        return next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), 1)

    def where(self, path: Place) -> str:
        """As `config.yaml:12`."""
        return f"{self.path}:{self.line(path)}"

    def _note(self, node: Any, path: Place) -> None:
        if len(path) > 64:  # an alias to its container
            return
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                here = (*path, key.value)
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    self._twice.append(Mistake(here, "is there twice; the first one would be ignored"))
                seen.add(key.value)
                self._lines[here] = key.start_mark.line + 1
                self._note(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for at, value in enumerate(node.value):
                self._lines[(*path, at)] = value.start_mark.line + 1
                self._note(value, (*path, at))
