"""Tries a config file's import paths (`package.module:name`, or with a dot)."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from serve_app.fields import did_you_mean


class NotImportable(Exception):
    """Raised when an import path leads to nothing; tells where it ends and what is near."""


def load(import_path: str, *, only: Iterable[str] = ()) -> Any:
    """The path's target; modules of the present folder count, as for `serve run`. `only` limits the names. Raises
    NotImportable.
    """
    module_name, _, name = import_path.rpartition(":" if ":" in import_path else ".")
    if not module_name or not name or import_path.count(":") > 1:
        raise NotImportable(f"must be of the form 'package.module:name', not '{import_path}'")
    with _present_folder():
        target: Any = _module(module_name)
        if (only and name not in only) or not hasattr(target, name.partition(".")[0]):
            public = only or [one for one in vars(target) if not one.startswith("_")]
            raise NotImportable(f"{module_name} has no '{name}'{did_you_mean(name, public) or _those(only)}")
        for part in name.split("."):
            if not hasattr(target, part):
                raise NotImportable(f"{import_path}: there is no '{part}'{did_you_mean(part, dir(target))}")
            target = getattr(target, part)
    return target


def unknown_arguments(target: Any, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, mistake) of keyword arguments that a function, or a class's constructor, does not take."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            known = did_you_mean(name, parameters) or _those(parameters)
            yield name, f"{target.__name__} has no argument of this name{known}"


def _those(names: Iterable[str]) -> str:
    names = list(names)
    return f"; known are {', '.join(names)}" if names else ""


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            why = f"it imports '{error.name}', which is not installed"
            raise NotImportable(f"{name} cannot be imported: {why}") from error
        parent, _, last = error.name.rpartition(".")
        near = did_you_mean(last, _submodules(parent))
        raise NotImportable(f"there is no module '{last}'{f' in {parent}' if parent else ''}{near}") from error
    except Exception as error:
        raise NotImportable(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _submodules(parent: str) -> list[str]:
    folders = getattr(importlib.import_module(parent), "__path__", []) if parent else None
    return [one.name for one in pkgutil.iter_modules(folders)]


@contextmanager
def _present_folder() -> Iterator[None]:
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
