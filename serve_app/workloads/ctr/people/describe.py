"""A person in words, for the prompt: short on purpose, since these are the tokens that no cache saves."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from serve_app.workloads.ctr.people.distributions import Value, as_text


class Description:
    """A template with `{attribute}` fields, and words that stand for values, by the values' text (true, false, null).

    Without a template every attribute is named: "age: 34, is married: yes". Raises ValueError for a field or word of
    no attribute.
    """

    def __init__(
        self, template: str, attributes: Sequence[str], words: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self._words = words or {}
        for name in self._words:
            if name not in attributes:
                raise ValueError(f"words: '{name}' is no attribute; these are: {', '.join(attributes)}")
        self._parts = list(_parse(template, attributes)) if template else _all(attributes)

    def of(self, person: Mapping[str, Value]) -> str:
        """What is said of that person."""
        return "".join(
            text + ("" if name is None else self._say(name, person[name])) for text, name in self._parts
        ).strip()

    def _say(self, name: str, value: Value) -> str:
        text = as_text(value)
        plain = {"true": "yes", "false": "no", "null": "none"}.get(text, text)
        return self._words.get(name, {}).get(text, plain) if name in self._words else plain


def _parse(template: str, attributes: Sequence[str]) -> list[tuple[str, str | None]]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"describe: {error}; write {{{{ or }}}} for a brace") from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or name not in attributes):
            raise ValueError(f"describe: '{{{name}}}' is no attribute; these are: {', '.join(attributes)}")
    return [(text, name) for text, name, _, _ in parts]


def _all(attributes: Sequence[str]) -> list[tuple[str, str | None]]:
    return [(f"{', ' if i else ''}{name.replace('_', ' ')}: ", name) for i, name in enumerate(attributes)]
