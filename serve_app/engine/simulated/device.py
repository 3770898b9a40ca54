"""The simulated device: compute time, prefix cache and scripted faults. Knows no text."""

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
    """One device with a queue. Prompts are packed token ids (`schema.pack_tokens`)."""

    def __init__(self, settings: SimulatedSettings) -> None:
        self.waiting = 0
        self._settings = settings
        self._blocks: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._lock = asyncio.Lock()
        self._calls = 0
        self._failed = False

    async def prefill(self, prompts: Sequence[bytes]) -> list[int]:
        """Compute the prompts and one token of each; return the cached tokens of each.

        Raises EngineFailed when the device is lost, or its script fails this call.
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
        """Wait for `tokens` more tokens: one step each, shared by all running requests."""
        if tokens > 0 and self._settings.step_ms:
            await asyncio.sleep(tokens * self._settings.step_ms / 1000)

    def _cached_tokens(self, prompt: bytes) -> int:
        """Cached tokens of the leading blocks. Then caches the prompt's whole blocks."""
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
        self._failed = True


# Receives prompt tokens before the computation, and completion tokens. May raise PromptTooLong.
Count = Callable[[Sequence[int], int], None]


# Receives the number of prompts that have their first token.
Started = Callable[[int], None]


def count_nothing(prompts: Sequence[int], completion_tokens: int) -> None:
    """The default: no accounting."""


def note_nothing(prompts: int) -> None:
    """The same."""


@dataclass(frozen=True, slots=True)
class Served:
    """A device and the model names that clients use. `created` is in seconds since 1970."""

    names: tuple[str, ...]
    max_model_len: int
    device: Device
    created: int
    embedding_dimensions: int
    count: Count = count_nothing
    started: Started = note_nothing

    async def prefill(self, prompts: Sequence[bytes], completion_tokens: int) -> list[int]:
        """Count and compute a request's prompts; the cached tokens of each. Raises as `count` and `Device.prefill`."""
        self.count([len(prompt) // TOKEN_BYTES for prompt in prompts], completion_tokens)
        cached = await self.device.prefill(prompts)
        self.started(len(prompts))
        return cached
