"""Whether something grew: a slope through many looks, as two of them differ by what was just then at work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from benchmarks.soak.census import Being, Look, Usage

MIB = 2**20
# Looks of a shorter time say nothing of a slope.
LEAST_LOOKS = 10


class Growth(NamedTuple):
    """A process over the looks: at the first and the last by the line through all, and what it had more at the end."""

    being: Being
    first_mib: float
    last_mib: float
    pct: float
    descriptors: int
    threads: int


def slope(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The line through (time, value) as value at time 0 and slope: Theil and Sen's, the medians, which a quarter of
    wild values does not move.
    """
    steps = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(values, 2) if b[0] > a[0])
    steepness = steps[len(steps) // 2] if steps else 0.0
    offsets = sorted(value - steepness * at for at, value in values)
    return offsets[len(offsets) // 2], steepness


def growths(looks: Sequence[Look], before: Look, after: Look) -> list[Growth]:
    """Of each process that lived through all the looks: memory while it worked, and descriptors and threads from one
    quiet moment to another.
    """
    lasting = set(before.processes) & set(after.processes)
    return [
        _growth(being, looks, before.processes[being], after.processes[being])
        for being in sorted(lasting)
        if sum(being in look.processes for look in looks) >= LEAST_LOOKS
    ]


def curves(looks: Sequence[Look]) -> dict[str, list[tuple[int, int, int]]]:
    """(MiB, descriptors, threads) of each process at every look, to see when it grew."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for look in looks:
        for being, usage in look.processes.items():
            seen = (usage.rss_bytes // MIB, usage.descriptors, usage.threads)
            found.setdefault(f"{being.role} {being.pid}", []).append(seen)
    return found


def _growth(being: Being, looks: Sequence[Look], before: Usage, after: Usage) -> Growth:
    seen = [(look.at_s, look.processes[being].rss_bytes / MIB) for look in looks if being in look.processes]
    offset, steepness = slope([(at - seen[0][0], mib) for at, mib in seen])
    first, last = offset, offset + steepness * (seen[-1][0] - seen[0][0])
    return Growth(
        being,
        first,
        last,
        100 * (last - first) / max(first, 1e-9),
        after.descriptors - before.descriptors,
        after.threads - before.threads,
    )
