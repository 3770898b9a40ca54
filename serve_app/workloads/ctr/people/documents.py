"""Reads users' YAML and JSON strictly, and locates errors."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from serve_app.bounded_yaml import load
from serve_app.errors import BadSettings

M = TypeVar("M", bound=pydantic.BaseModel)


def read_document(path: Path) -> Any:
    """A YAML or .json file's data. Raises BadSettings, also for repeated keys, of which libraries keep the last."""
    try:
        return parse_document(path.read_text(encoding="utf-8"), as_json=path.suffix.lower() == ".json")
    except OSError as error:
        raise BadSettings(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadSettings(f"{path} cannot be read: {error}") from error


def parse_document(text: str, *, as_json: bool = False) -> Any:
    """The same of text. Raises yaml.YAMLError or ValueError."""
    if as_json:
        return json.loads(text, object_pairs_hook=_without_doubles)
    return load(text, _StrictLoader)


def validated(model: type[M], document: Any, where: str) -> M:
    """The document as that model. Raises BadSettings with `where` and all wrong fields."""
    try:
        return model.model_validate(document)
    except pydantic.ValidationError as error:
        raise BadSettings(f"{where}: {'; '.join(map(_problem, error.errors()))}") from error


def _problem(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' is given twice")
    return document


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or mapping", key_node.start_mark)
            if (type(key), key) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add((type(key), key))
        return super().construct_mapping(node, deep)
