"""Describes a person for the prompt, briefly: the cache does not save these tokens."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from serve_app.workloads.ctr.people.distributions import Value, as_text

# Between clauses.
_CLAUSE_END = re.compile(r"([,;.]\s+|\n)")
UNKNOWN = "unknown"

_Part = tuple[str, str | None]


class Description:
    """A template with `{attribute}` fields, and words for values, by their text (true, false, null).

    Without a template every attribute but the `untold` is named: "age: 34, is married: yes". What a person has no
    value of is left out: the clause, up to a comma, semicolon or full stop, if that says nothing else; or else it is
    "unknown" there. Raises ValueError for a field or word of no attribute.
    """

    def __init__(
        self,
        template: str,
        attributes: Sequence[str],
        words: Mapping[str, Mapping[str, str]] | None = None,
        *,
        untold: Sequence[str] = (),
    ) -> None:
        self._words = words or {}
        for name in self._words:
            if name not in attributes:
                raise ValueError(f"words: '{name}' is no attribute; these are: {', '.join(attributes)}")
        told = [name for name in attributes if name not in untold]
        self._parts = list(_parse(template, attributes)) if template else _all(told)
        self._clauses = _clauses(self._parts)
        self.names = frozenset(name for _, name in self._parts if name is not None)

    def of(self, person: Mapping[str, Value]) -> str:
        """What is said of that person."""
        if self.names <= person.keys():
            return self._text(self._parts, person)
        told = [clause for clause in self._clauses if _tells(clause, person)]
        # Clauses begin with their separator.
        return self._text([part for clause in told for part in clause], person).lstrip(",;. \n")

    def _text(self, parts: Sequence[_Part], person: Mapping[str, Value]) -> str:
        return "".join(text + ("" if name is None else self._said(name, person)) for text, name in parts).strip()

    def _said(self, name: str, person: Mapping[str, Value]) -> str:
        return self._say(name, person[name]) if name in person else UNKNOWN

    def _say(self, name: str, value: Value) -> str:
        text = as_text(value)
        plain = {"true": "yes", "false": "no", "null": "none"}.get(text, text)
        return self._words.get(name, {}).get(text, plain) if name in self._words else plain


def _parse(template: str, attributes: Sequence[str]) -> list[_Part]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"describe: {error}; write {{{{ or }}}} for a brace") from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or name not in attributes):
            raise ValueError(f"describe: '{{{name}}}' is no attribute; these are: {', '.join(attributes)}")
    return [(text, name) for text, name, _, _ in parts]


def _all(attributes: Sequence[str]) -> list[_Part]:
    return [(f"{', ' if i else ''}{name.replace('_', ' ')}: ", name) for i, name in enumerate(attributes)]


def _clauses(parts: Sequence[_Part]) -> list[list[_Part]]:
    clauses: list[list[_Part]] = [[]]
    for text, name in parts:
        words, *more = _CLAUSE_END.split(text)
        # Text before a separator ends its clause.
        tails = [words, *(separator + said for separator, said in zip(more[::2], more[1::2], strict=True))]
        for tail in tails[:-1]:
            clauses[-1].append((tail, None))
            clauses.append([])
        clauses[-1].append((tails[-1], name))
    return clauses


def _tells(clause: Sequence[_Part], person: Mapping[str, Value]) -> bool:
    names = [name for _, name in clause if name is not None]
    return not names or any(name in person for name in names)
