"""What computes, or would: the time that it takes, its prefix cache, and faults by script. Knows no text."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.errors import EngineFailed
from serve_app.settings import SimulatedSettings

# See `schema.pack_tokens`.
TOKEN_BYTES = 4


class Device:
    """One device: whoever computes waits in line. Prompts are packed token ids (`schema.pack_tokens`)."""

    def __init__(self, settings: SimulatedSettings) -> None:
        self.waiting = 0
        self._settings = settings
        self._blocks: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._lock = asyncio.Lock()
        self._calls = 0
        self._failed = False

    async def prefill(self, prompts: Sequence[bytes]) -> list[int]:
        """Compute the prompts and a token of each. The tokens of each that the cache held.

        Raises EngineFailed when the device is lost, or is by this call, as scripted.
        """
        self.check()
        cached = [self._cached_tokens(prompt) for prompt in prompts]
        tokens = sum(len(prompt) // TOKEN_BYTES - hit for prompt, hit in zip(prompts, cached, strict=True))
        steps = math.ceil(len(prompts) / self._settings.max_num_seqs)
        self.waiting += len(prompts)
        async with self._lock:
            self.waiting -= len(prompts)
            await asyncio.sleep((steps * self._settings.step_ms + tokens * self._settings.prefill_ms_per_token) / 1000)
        self._calls += 1
        if self._settings.fail_after_chunks is not None and self._calls > self._settings.fail_after_chunks:
            self._failed = True
            self.check()
        return cached

    async def decode(self, tokens: int) -> None:
        """The time of so many further tokens: a step each, which all that run share."""
        if tokens > 0 and self._settings.step_ms:
            await asyncio.sleep(tokens * self._settings.step_ms / 1000)

    def _cached_tokens(self, prompt: bytes) -> int:
        """Tokens of the leading blocks that are in the cache; afterwards all of the prompt's whole blocks are."""
        size, hit, unbroken = self._settings.block_size * TOKEN_BYTES, 0, True
        for end in range(size, len(prompt), size):
            block = hash(prompt[:end])
            unbroken = unbroken and block in self._blocks
            if unbroken:
                hit = end
                self._blocks.move_to_end(block)
            else:
                self._blocks[block] = None
        while len(self._blocks) > self._settings.kv_blocks:
            self._blocks.popitem(last=False)
        return hit // TOKEN_BYTES

    def check(self) -> None:
        """Raises EngineFailed if the device is lost."""
        if self._failed:
            raise EngineFailed("simulated: the engine failed as scripted")

    def fail(self) -> None:
        """It computes no more."""
        self._failed = True


# Told the tokens of each prompt before it is computed, and those of all answers. May raise PromptTooLong.
Count = Callable[[Sequence[int], int], None]


def count_nothing(prompts: Sequence[int], completion_tokens: int) -> None:
    """Where nobody asks what a request costs."""


@dataclass(frozen=True, slots=True)
class Served:
    """A device under the names that clients know it by. `created` is in seconds since 1970."""

    names: tuple[str, ...]
    max_model_len: int
    device: Device
    created: int
    embedding_dimensions: int
    count: Count = count_nothing
