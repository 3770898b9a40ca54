"""How much of some prompts a prefix cache can serve at most, so that a measured hit rate has something to stand beside.

The cache modelled is vLLM's with unlimited room: whole blocks of tokens, found by all that stands before them, and at
least one token of each prompt computed (its last block never counts if that would leave none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sharing:
    """Tokens of some prompts, and those that were in the cache."""

    tokens: int
    cached: int

    @property
    def share(self) -> float:
        """Cached share; 0 of nothing."""
        return self.cached / self.tokens if self.tokens else 0.0


class PrefixCache:
    """Blocks seen so far, for one or more calls; a new one is cold."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._seen: set[int] = set()

    def add(self, prompts: Sequence[Sequence[int]]) -> Sharing:
        """Serve prompts (token ids), one after another; what they found in the cache."""
        found = [self._serve(prompt) for prompt in prompts]
        return Sharing(sum(map(len, prompts)), sum(found))

    def _serve(self, prompt: Sequence[int]) -> int:
        cached, prefix, hit = 0, 0, True
        for start in range(0, len(prompt) - self._block_size + 1, self._block_size):
            prefix = hash((prefix, *prompt[start : start + self._block_size]))
            hit = hit and prefix in self._seen
            if hit and start + self._block_size < len(prompt):
                cached += self._block_size
            self._seen.add(prefix)
        return cached


def cold_bound(count: int) -> float:
    """Cached share of `count` leave-one-out prompts of equal demonstrations, a power of two: 1 − (log2 N + 1)/N."""
    return 1 - (count.bit_length() - 1 + 1) / count
