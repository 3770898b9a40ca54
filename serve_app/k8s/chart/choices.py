"""Choices: values of which the manifests' shape depends, each with its conditions in a Helm template."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

Combination = tuple[int, ...]  # an option's index for each choice


@dataclass(frozen=True, slots=True)
class Option:
    """`condition` is a template's pipeline, and `fields` the values that stand for all of which it holds."""

    condition: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """Options of which exactly one holds."""

    options: tuple[Option, ...]

    def condition(self, chosen: Iterable[int]) -> str:
        return _any([self.options[index].condition for index in sorted(chosen)])


def choice(*options: tuple[str, dict[str, Any]]) -> Choice:
    return Choice(tuple(Option(condition, fields) for condition, fields in options))


def either(pipeline: str, without: dict[str, Any], with_it: dict[str, Any]) -> Choice:
    """Of a value that is there (not null, "", false or empty) or not."""
    return choice((f"not {pipeline}", without), (pipeline, with_it))


def combinations(choices: tuple[Choice, ...]) -> list[Combination]:
    return list(product(*(range(len(one.options)) for one in choices)))


def chosen(document: dict[str, Any], choices: tuple[Choice, ...], combination: Combination) -> dict[str, Any]:
    """The document with the options' fields over its own."""
    found = copy.deepcopy(document)
    for one, index in zip(choices, combination, strict=True):
        overlay(found, one.options[index].fields)
    return found


def overlay(document: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, dict) and isinstance(document.get(name), dict):
            overlay(document[name], value)
        else:
            document[name] = copy.deepcopy(value)


def when(choices: tuple[Choice, ...], holds: set[Combination], domain: set[Combination]) -> str:
    """A pipeline that is true for the combinations of `holds`, among those of `domain`; "" if it is for all."""
    if holds == domain:
        return ""
    places = range(len(choices))
    varied = (i for i in places if len({combination[i] for combination in domain}) > 1)
    index = next((i for i in places if _decides(i, holds, domain)), None)
    index = next(varied) if index is None else index
    options = {combination[index] for combination in domain}
    by_rest: dict[str | None, list[int]] = {}
    for option in sorted(options):
        part = {c for c in domain if c[index] == option}
        rest = when(choices, holds & part, part) if holds & part else None
        by_rest.setdefault(rest, []).append(option)
    by_rest.pop(None, None)
    own = choices[index].condition
    return _any([_all([own(chosen), rest]) for rest, chosen in by_rest.items() if rest is not None])


def _decides(index: int, holds: set[Combination], domain: set[Combination]) -> bool:
    """Whether this choice alone changes the answer for some combination."""
    without = {(c[:index], c[index + 1 :]) for c in domain - holds}
    return any((c[:index], c[index + 1 :]) in without for c in holds)


def _any(conditions: list[str]) -> str:
    return conditions[0] if len(conditions) == 1 else f"or {' '.join(map(_term, conditions))}"


def _all(conditions: list[str]) -> str:
    conditions = [condition for condition in conditions if condition]
    return conditions[0] if len(conditions) == 1 else f"and {' '.join(map(_term, conditions))}"


def _term(condition: str) -> str:
    return f"({condition})" if " " in condition else condition
