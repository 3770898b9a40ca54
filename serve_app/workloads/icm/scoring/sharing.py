"""The share of prompts that a prefix cache can serve at most, to compare with measured hit rates.

Models vLLM's cache with unlimited room: whole token blocks, found by all preceding tokens; each prompt computes at
least one token, so its last block may not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sharing:
    """Tokens of prompts, and cached ones."""

    tokens: int
    cached: int

    @property
    def share(self) -> float:
        """Cached share; 0 if empty."""
        return self.cached / self.tokens if self.tokens else 0.0


class PrefixCache:
    """Blocks seen in one or more calls; starts cold."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._seen: set[int] = set()

    def add(self, prompts: Sequence[Sequence[int]]) -> Sharing:
        """Serve prompts (token ids) in turn; returns their cache hits."""
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
