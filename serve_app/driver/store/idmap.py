"""A compact map from 128-bit keys to 64-bit numbers: 24 bytes a row, where a dict takes more than 150.

Knows keys and numbers. Does not know what they stand for. A log-structured merge tree in memory: sorted runs, each
larger than all that came after it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
# Rows that are merged at a time: they fit into a core's cache.
PIECE_ROWS = 16_384

Words = NDArray[np.uint64]
Places = NDArray[np.intp]


class Run(NamedTuple):
    """Keys in two words, sorted by both, each key once, and their values."""

    high: Words
    low: Words
    values: Words


class IdMap:
    """The last value given for each key, as in a dict. Add and look up in batches: each costs a search a run."""

    def __init__(self) -> None:
        # Oldest and largest first.
        self._runs: list[Run] = []

    def add(self, keys: Sequence[bytes], values: Words) -> None:
        """Add `len(keys)` keys of 16 bytes and as many values. Raises ValueError for other lengths."""
        high, low = _words(keys)
        if len(high) != len(values):
            raise ValueError(f"{len(high)} keys and {len(values)} values")
        if not len(high):
            return
        run = _sorted(Run(high, low, np.asarray(values, np.uint64)))
        # Sizes at least halve from run to run, so there are few, and each row is sorted again only as often.
        while self._runs and len(self._runs[-1].high) < 2 * len(run.high):
            run = _merged(self._runs.pop(), run)
        self._runs.append(run)

    def get(self, key: bytes) -> int | None:
        """The key's value, None if it has none."""
        return self.lookup([key])[0]

    def lookup(self, keys: Sequence[bytes]) -> list[int | None]:
        """The values of `len(keys)` keys of 16 bytes, in their order, None for those without."""
        high, low = _words(keys)
        order = np.argsort(high)  # neighbours lie in the same cache lines
        high, low = high[order], low[order]
        found: list[int | None] = [None] * len(high)
        for run in self._runs:  # a younger run's value overwrites an older one's
            for which, places in _matches(run, high, low):
                for row, value in zip(order[which].tolist(), run.values[places].tolist(), strict=True):
                    found[row] = value
        return found


def _merged(older: Run, younger: Run) -> Run:
    """Both in one, piece by piece: what a merge takes for itself stays small."""
    block = _block(len(older.high) + len(younger.high))
    bounds = older.high[PIECE_ROWS::PIECE_ROWS]
    # Cut left of a first word, so that equal keys are in the same piece.
    cuts = [[0, *np.searchsorted(run.high, bounds).tolist(), len(run.high)] for run in (older, younger)]
    rows = 0
    for a, b, c, d in zip(cuts[0], cuts[0][1:], cuts[1], cuts[1][1:], strict=False):
        piece = _sorted(Run(*(np.concatenate([x[a:b], y[c:d]]) for x, y in zip(older, younger, strict=True))))
        block[:, rows : rows + len(piece.high)] = piece
        rows += len(piece.high)
    return Run(*block[:, :rows])


def _block(rows: int) -> Words:
    """Three rows of words in pages of their own, which go back to the system at once; malloc would keep most."""
    return np.frombuffer(mmap.mmap(-1, 3 * 8 * rows), np.uint64).reshape(3, rows)


def _matches(run: Run, high: Words, low: Words) -> Iterator[tuple[Places, Places]]:
    """Which of the keys the run has, and where in it."""
    which = np.arange(len(high))
    places = np.searchsorted(run.high, high)
    while len(which):  # once or twice, unless keys share their first word
        inside = places < len(run.high)
        which, places = which[inside], places[inside]
        same = run.high[places] == high[which]
        which, places = which[same], places[same]
        hit = run.low[places] == low[which]
        yield which[hit], places[hit]
        which, places = which[~hit], places[~hit] + 1


def _words(keys: Sequence[bytes]) -> tuple[Words, Words]:
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"keys have {KEY_BYTES} bytes")
    words = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
    return words[:, 0], words[:, 1]


def _sorted(run: Run) -> Run:
    """By key; of equal keys the last stays."""
    order = np.lexsort((run.low, run.high))
    high, low, values = (column[order] for column in run)
    last = np.append((high[1:] != high[:-1]) | (low[1:] != low[:-1]), True)
    return Run(high, low, values) if last.all() else Run(high[last], low[last], values[last])
