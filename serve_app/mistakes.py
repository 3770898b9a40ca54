"""Finds mistakes in a document, each with its place.

Turns pydantic's errors into sentences, and finds what lenient models, such as Ray Serve's, silently ignore.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from serve_app.fields import UNKNOWN_FIELD, UNKNOWN_VALUE, choices, did_you_mean, meant, members, names

Path = tuple[str | int, ...]

# pydantic's error types, as "must be …, not 3".
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
# Covered by `silent`.
_SILENT = (UNKNOWN_FIELD, "extra_forbidden", "invalid_key")
_UNREADABLE = "cannot be read:"
_VAGUE = ("must be", _UNREADABLE)
# Beyond this many choices only the nearest is named.
MOST_CHOICES = 12


@dataclass(frozen=True, slots=True)
class Mistake:
    """`problem` continues a sentence after the place ("must be …"), or is a sentence."""

    path: Path
    problem: str

    def __str__(self) -> str:
        if not self.path:
            return self.problem
        goes_on = self.problem.startswith(("must ", "is ", "cannot ", "needs "))
        return f"{dotted(self.path)}{' ' if goes_on else ': '}{self.problem}"

    def below(self, path: Path) -> Mistake:
        """The same mistake in a larger document with this one at `path`."""
        return Mistake((*path, *self.path), self.problem)


def dotted(path: Path) -> str:
    """As `applications[0].deployments[1].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """As YAML, truncated if long."""
    text = {None: "empty", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else (
        "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value))  # fmt: skip
    return text if len(text) <= 80 else f"{text[:77]}…"


def unknown_field(name: object, model: type[BaseModel]) -> str:
    return f"there is no field of this name{meant(name, model) or _some(names(model))}"


def unknown_choice(value: Any, known: Iterable[str]) -> str:
    """The same for a value outside a list."""
    known = list(known)
    near = did_you_mean(value, known)
    if len(known) <= MOST_CHOICES:
        return f"must be one of {', '.join(known)}, not {shown(value)}{near}"
    return f"is not a known one: {shown(value)}{near or _some(known)}"


def _some(known: list[str]) -> str:
    return f"; known are {', '.join(sorted(known)[:MOST_CHOICES])}{', …' if len(known) > MOST_CHOICES else ''}"


def from_pydantic(error: ValidationError, document: Any) -> list[Mistake]:
    """One mistake for each place of `document`; a union's complaints become one sentence. Leaves unknown fields to
    `silent`.
    """
    found: dict[Path, list[Any]] = {}
    for one in error.errors(include_url=False):
        if one["type"] in _SILENT:
            continue
        found.setdefault(_path(one, document), []).append(one)
    return [Mistake(path, _sentence(errors)) for path, errors in found.items()]


def _path(error: Any, document: Any) -> Path:
    """The place in the document; pydantic's `loc` also has union members."""
    path: list[str | int] = []
    for part in error["loc"]:
        if (isinstance(document, dict) and part in document) or (
            isinstance(document, list) and isinstance(part, int) and part < len(document)
        ):
            document = document[part]
        elif not (error["type"] == "missing" and part == error["loc"][-1]):
            continue
        path.append(part)
    if error["type"] in ("value_error", "assertion_error") and isinstance(document, dict):
        path += _named(error["msg"], document)
    return tuple(path)


def _named(message: str, fields: Mapping[Any, Any]) -> list[str]:
    """The first field named by a complaint about several."""
    at = {name: re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", message) for name in map(str, fields)}
    found = sorted((match.start(), name) for name, match in at.items() if match)
    return [name for _, name in found[:1]]


def _sentence(errors: list[Any]) -> str:
    expected = [_expected(error) for error in errors]
    if all(expected):
        return f"must be {' or '.join(dict.fromkeys(expected))}, not {shown(errors[0]['input'])}"
    return next(_statement(error) for error, one in zip(errors, expected, strict=True) if not one)


def _expected(error: Any) -> str:
    """The expected value; "" if the message needs more."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        what = "a whole number" if isinstance(context[name], int) else "a number"
        return f"{what} of {words} {context[name]:g}"
    if kind.endswith(("_type", "_parsing", "_from_float", "_attributes_type")):
        return _KINDS.get(kind.split("_")[0], "")
    return ""


def _statement(error: Any) -> str:
    kind, context = error["type"], error.get("ctx") or {}
    if kind in (UNKNOWN_VALUE, "literal_error", "enum"):
        return unknown_choice(error["input"], context.get("known") or choices(error))
    if kind == "missing":
        return "is missing"
    if kind == "string_too_short" or (kind == "too_short" and not error["input"]):
        return "is empty"
    message: str = context.get("text") or error["msg"]
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def silent(model: type[BaseModel], document: Any, path: Path = ()) -> Iterator[Mistake]:
    """What `model` silently accepts in `document` but nobody can mean.

    Unknown fields at any depth, true or false as a number, and, for models that accept any mapping, the model's own
    errors.
    """
    if not isinstance(document, dict):
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for name, value in document.items():
        here = (*path, name)
        if not isinstance(name, str):
            yield Mistake(here, "a field's name must be text: YAML reads on, off, yes and no as true and false")
            continue
        if name not in fields:
            yield Mistake(here, unknown_field(name, model))
            continue
        kinds = list(members(fields[name].annotation))
        if isinstance(value, bool) and bool not in kinds and {int, float} & {*kinds}:
            what = _KINDS["float" if float in kinds else "int"]
            yield Mistake(here, f"must be {what}, not {shown(value)}")
        # Any mapping is allowed; the model's errors count too.
        loose = any(kind is dict or get_origin(kind) is dict for kind in kinds)
        for inner, place, one in _models_at(kinds, value, here):
            if not isinstance(one, dict):  # Serve's validators fail on it
                yield Mistake(place, f"must be {_KINDS['model']}, not {shown(one)}")
                continue
            yield from silent(inner, one, place)
            if loose:
                yield from checked(inner, one, place)


def _models_at(kinds: list[Any], value: Any, path: Path) -> Iterator[tuple[type[BaseModel], Path, Any]]:
    """Values that should be models, by the field's types: `value` itself or its list entries."""
    for kind in kinds:
        if get_origin(kind) in (list, tuple) and isinstance(value, list):
            items = list(members(get_args(kind)[0]))
            for at, one in enumerate(value):
                if len(items) == 1 or isinstance(one, dict):
                    yield from _models_at(items, one, (*path, at))
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and (isinstance(value, dict) or len(kinds) == 1):
            yield kind, path, value


def mistakes(model: type[BaseModel], document: Any, path: Path = ()) -> list[Mistake]:
    """All mistakes in `document`, at `path` of a larger one, as a `model`."""
    first: dict[Path, Mistake] = {}
    for one in (*silent(model, document, path), *checked(model, document, path)):
        first.setdefault(one.path, one)
    return sharpest(first.values())


def sharpest(found: Iterable[Mistake]) -> list[Mistake]:
    """Without duplicates, and without outer mistakes that only repeat inner ones."""
    found = list(dict.fromkeys(found))
    # `a name or a mapping` gives two errors: it is no name, and the mapping's own.
    outer = {one.path[:end] for one in found for end in range(len(one.path))}
    return [one for one in found if one.path not in outer or not one.problem.startswith(_VAGUE)]


def checked(model: type[BaseModel], document: Any, path: Path = ()) -> list[Mistake]:
    """What `model` rejects; not what `silent` finds."""
    try:
        model.model_validate(document)
    except ValidationError as error:
        return [one.below(path) for one in from_pydantic(error, document)]
    except Exception as error:  # Serve's validators import what a field names
        return [Mistake(path, f"{_UNREADABLE} {type(error).__name__}: {error}")]
    return []
