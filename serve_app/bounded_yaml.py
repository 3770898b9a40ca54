"""Refuses YAML that ends a process or grows without bound when it is read: libyaml's composer calls itself for each
level and overflows the C stack at some 10^5, and aliases of aliases ("billion laughs") grow as 10^n.
"""

from __future__ import annotations

from typing import Any

import yaml

MOST_NESTED = 100
# Fields and items, aliases written out.
MOST_NODES = 1_000_000


def load(text: str | bytes, loader: Any = yaml.CSafeLoader) -> Any:
    """The document. Raises ValueError or yaml.YAMLError, and nothing else."""
    check_size(text)
    try:
        return yaml.load(text, loader)
    # `!!int ""` is an IndexError in PyYAML's constructors, `!!bool x` a KeyError, `!!timestamp x` an AttributeError.
    except (LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"a value is not of the type that its tag says: {error!r}") from error


def check_size(text: str | bytes) -> None:
    """Raise ValueError above either bound, yaml.YAMLError for what is no YAML. Reads events: memory stays small."""
    sizes: dict[str, int] = {}
    # Of the open collections: anchor, and nodes so far.
    above: list[tuple[str | None, int]] = []
    nodes = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            nodes += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                above.append((event.anchor, nodes - 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = above.pop()
            if anchor:
                sizes[anchor] = nodes - before
        if len(above) > MOST_NESTED:
            raise ValueError(f"nested deeper than {MOST_NESTED} lists and mappings")
        if nodes > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES:,} values, aliases written out")
