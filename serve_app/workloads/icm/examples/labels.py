"""A labelling of a dataset: one byte an example, 0 (the first label word), 1 (the second) or NONE (no label yet).

Bytes, as a search remembers tens of thousands of labellings: they hash and compare at once and take their length.
"""

from __future__ import annotations

NONE = 2
Labels = bytes


def unlabelled(count: int) -> Labels:
    """No example has a label."""
    return bytes([NONE]) * count


def put(labels: Labels, *changes: tuple[int, int]) -> Labels:
    """The labelling with `(index, label)` changed."""
    changed = bytearray(labels)
    for index, label in changes:
        changed[index] = label
    return bytes(changed)


def without(labels: Labels, index: int) -> Labels:
    """D∖i: the labelling without that example's label."""
    return put(labels, (index, NONE))


def labelled(labels: Labels) -> list[int]:
    """Indices of the examples that have a label."""
    return [index for index, label in enumerate(labels) if label != NONE]


def differences(old: Labels, new: Labels) -> list[tuple[int, int]]:
    """`(index, new label)` of the examples whose label differs."""
    return [(index, label) for index, label in enumerate(new) if label != old[index]]
