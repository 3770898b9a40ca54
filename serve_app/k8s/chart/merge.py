"""Objects that differ by choices, as one template: what is the same is said once, what differs is in an `if`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from serve_app.k8s.chart.choices import Choice, Combination, when

Variants = Mapping[Combination, Any]
Lines = list[str]
# Items of lists are the same item where these fields are.
NAMES = ("name", "mountPath", "groupName", "containerPort", "key", "topologyKey", "kind")
# Strings that YAML takes as they are.
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*")
# Of several lines, which a block has without saying more of indents and ends.
_BLOCK = re.compile(r"[^ \n].*\n(?:.*\n)*.*[^\n]\n?")
_NO_STRINGS = re.compile(r"(?i:true|false|yes|no|on|off|y|n|null|nan|inf)")


class Template:
    """Writes YAML with `if` and `range` of Helm. `lists` maps the placeholder of a list's only item to its pipeline."""

    def __init__(self, choices: tuple[Choice, ...], lists: Mapping[str, str]) -> None:
        self.choices, self.lists = choices, lists

    def guarded(self, domain: Variants, having: Variants, lines: Callable[[Variants], Lines]) -> Lines:
        """Lines for those of the domain's combinations that have something."""
        condition = when(self.choices, set(having), set(domain))
        return lines(having) if not condition else [f"{{{{- if {condition} }}}}", *lines(having), "{{- end }}"]

    def mapping(self, variants: Variants, indent: int) -> Lines:
        lines: Lines = []
        for key in dict.fromkeys(key for value in variants.values() for key in value):
            having = {combination: value[key] for combination, value in variants.items() if key in value}
            node = partial(self.node, f"{' ' * indent}{_scalar(key)}:", indent)
            lines += self.guarded(variants, having, node)
        return lines

    def node(self, head: str, indent: int, variants: Variants) -> Lines:
        """`head`, which ends in a colon, and the value."""
        values = list(variants.values())
        if all(isinstance(value, dict) and value for value in values):
            return [head, *self.mapping(variants, indent + 2)]
        if all(isinstance(value, list) and value for value in values) and (lines := self.sequence(variants, indent)):
            return [head, *lines]
        if len(_groups(variants)) == 1:
            return _scalar_lines(head, values[0], indent)
        return self.split(variants, partial(self.node, head, indent))

    def sequence(self, variants: Variants, indent: int) -> Lines:
        """Item by item; nothing where the lists have not one order, or only some of them are a value's list."""
        texts = [json.dumps(value) for value in variants.values()]
        if any(len({placeholder in text for text in texts}) > 1 for placeholder in self.lists):
            return []
        lists = {combination: list(map(_name, value)) for combination, value in variants.items()}
        plain = not any(isinstance(item, dict) for value in variants.values() for item in value)
        alike = {len(names) if plain else tuple(names) for names in lists.values()}
        if len(alike) == 1:  # by place, as two items may have one name
            lists = {combination: list(map(str, range(len(names)))) for combination, names in lists.items()}
        if (names := _merged(list(lists.values()))) is None:
            return []
        lines: Lines = []
        for name in names:
            having = {c: variants[c][own.index(name)] for c, own in lists.items() if name in own}
            lines += self.guarded(variants, having, partial(self.item, indent))
        return self.ranged(lines) if len(names) == 1 else lines

    def ranged(self, lines: Lines) -> Lines:
        for placeholder, pipeline in self.lists.items():
            if any(placeholder in line for line in lines):
                own = [line.replace(placeholder, "{{ . }}") for line in lines]
                return [f"{{{{- range {pipeline} }}}}", *own, "{{- end }}"]
        return lines

    def item(self, indent: int, variants: Variants) -> Lines:
        if all(isinstance(value, dict) and value for value in variants.values()):
            lines = self.mapping(variants, indent + 2)
            if lines[0].startswith("{{"):
                return [f"{' ' * indent}-", *lines]
            return [f"{' ' * indent}- {lines[0].lstrip()}", *lines[1:]]
        if len(_groups(variants)) == 1:
            return _scalar_lines(f"{' ' * indent}-", next(iter(variants.values())), indent)
        return self.split(variants, partial(self.item, indent))

    def split(self, variants: Variants, lines: Callable[[Variants], Lines]) -> Lines:
        """Each of the values by its own condition."""
        groups = sorted(_groups(variants).values(), key=len)
        left, found = set(variants), []
        for number, group in enumerate(groups):
            condition = when(self.choices, set(group), left)
            words = [word for word in ("else" * bool(number), f"if {condition}" if condition else "") if word]
            found += [f"{{{{- {' '.join(words)} }}}}", *lines(group)]
            left -= set(group)
        return [*found, "{{- end }}"]


def _groups(variants: Variants) -> dict[str, dict[Combination, Any]]:
    """By equal value."""
    found: dict[str, dict[Combination, Any]] = {}
    for combination, value in variants.items():
        found.setdefault(json.dumps(value, sort_keys=True), {})[combination] = value
    return found


def _name(item: Any) -> str:
    if not isinstance(item, dict):
        return json.dumps(item)
    return json.dumps([item[field] for field in NAMES if isinstance(item.get(field), str | int)])


def _merged(lists: list[list[str]]) -> list[str] | None:
    """One order for all; None if there is none, or a name is twice in a list."""
    found: list[str] = []
    for names in lists:
        if len(set(names)) != len(names):
            return None
        place = 0
        for name in names:
            if name not in found:
                found.insert(place, name)
            place = found.index(name) + 1
    order = {name: place for place, name in enumerate(found)}
    return found if all(names == sorted(names, key=order.__getitem__) for names in lists) else None


def _scalar_lines(head: str, value: Any, indent: int) -> Lines:
    if isinstance(value, str) and _BLOCK.fullmatch(value):
        pad = " " * (indent + 2)
        lines = [f"{pad}{line}" if line else "" for line in _escaped(value).splitlines()]
        return [f"{head} {'|' if value.endswith(chr(10)) else '|-'}", *lines]
    return [f"{head} {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _NO_STRINGS.fullmatch(value) and "zz-" not in value:
        return value
    return _escaped(json.dumps(value, ensure_ascii=False))


def _escaped(text: str) -> str:
    """Other templates' braces, as of Prometheus' alerts."""
    return text.replace("{{", '{{ "{{" }}')
