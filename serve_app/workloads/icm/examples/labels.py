"""A labelling: one byte per example, 0 (first label word), 1 (second) or NONE. A search remembers tens of thousands,
and bytes hash and compare fast.
"""

from __future__ import annotations

NONE = 2
Labels = bytes


def unlabelled(count: int) -> Labels:
    """No example has a label."""
    return bytes([NONE]) * count


def put(labels: Labels, *changes: tuple[int, int]) -> Labels:
    """The labelling with `(index, label)` set."""
    changed = bytearray(labels)
    for index, label in changes:
        changed[index] = label
    return bytes(changed)


def without(labels: Labels, index: int) -> Labels:
    """D∖i: the labelling without that label."""
    return put(labels, (index, NONE))


def labelled(labels: Labels) -> list[int]:
    """Indices of labelled examples."""
    return [index for index, label in enumerate(labels) if label != NONE]


def differences(old: Labels, new: Labels) -> list[tuple[int, int]]:
    """`(index, new label)` where labels differ."""
    return [(index, label) for index, label in enumerate(new) if label != old[index]]
