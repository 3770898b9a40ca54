"""A deterministic engine without a model, for tests and for clusters larger than this machine.

Answers are a hash of the prompt, the same on every replica, and marked simulated. Latency is a roofline: a fixed time a
step plus a time a token that the prefix cache does not hold. The default coefficients were measured on vLLM 0.32 at
TP=2 on two cores with SmolLM2-135M: 384 prompts of 205 tokens (160 shared) at 24-26 rows/s, that is 40 ms a row of 45
uncached tokens, or 0.88 ms a token.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from serve_app.engine.protocol import ASGIApp
from serve_app.errors import EngineFailed
from serve_app.models.catalog import resolve_model
from serve_app.schema import Chunk, Completion, EngineInfo
from serve_app.settings import SimulatedSettings

# See `schema.pack_tokens`.
TOKEN_BYTES = 4


class SimulatedEngine:
    """See `engine.protocol.Engine`. `options` are a vLLM engine's; only names and sizes are read."""

    def __init__(self, options: Mapping[str, Any], settings: SimulatedSettings) -> None:
        self._options = options
        self._settings = settings
        self._blocks: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._waiting = 0
        self._device = asyncio.Lock()
        self._chunks = 0
        self._failed = False
        self._app: ASGIApp | None = None

    async def start(self) -> None:
        return None

    @property
    def info(self) -> EngineInfo:
        served = self._options.get("served_model_name") or self._options.get("model") or "simulated"
        return EngineInfo(
            model=served if isinstance(served, str) else str(served[0]),
            engine_version="simulated",
            tensor_parallel_size=int(self._options.get("tensor_parallel_size") or 1),
            max_model_len=int(self._options.get("max_model_len") or 8192),
            prefix_caching=True,
            simulated=True,
            tokenizer=str(resolve_model(self._options["model"])) if self._options.get("model") else "",
        )

    def app(self) -> ASGIApp:
        if self._app is None:
            self._app = self._build_app()
        return self._app

    def _build_app(self) -> ASGIApp:
        from fastapi import Body, FastAPI

        from serve_app.openai.errors import model_not_found

        app = FastAPI(title="simulated engine")

        @app.get("/health")
        async def health() -> dict[str, bool]:
            return {"simulated": True}

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": self.info.model, "object": "model", "owned_by": "simulated"}]}

        @app.post("/v1/chat/completions", response_model=None)
        async def chat(body: dict[str, Any] = Body()) -> Any:  # noqa: B008  # as FastAPI has it
            if (model := body.get("model", self.info.model)) != self.info.model:
                return model_not_found(str(model)).response()
            prompt = "\n".join(str(message.get("content")) for message in body["messages"])
            chunk = Chunk(0, (prompt.encode("utf-32-be", "replace"),), priority=int(body.get("priority", 0)))
            (completion,) = await self.run(chunk)
            message = {"role": "assistant", "content": completion.text}
            used = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens}
            return {
                "id": f"chatcmpl-{hashlib.sha256(prompt.encode()).hexdigest()[:16]}",
                "object": "chat.completion",
                "model": self.info.model,
                "choices": [{"index": 0, "message": message, "finish_reason": completion.finish_reason}],
                "usage": {**used, "total_tokens": sum(used.values())},
            }

        return app

    async def run(self, chunk: Chunk) -> tuple[Completion, ...]:
        await self.check_health()
        started = time.perf_counter()
        cached = [self._cached_tokens(prompt) for prompt in chunk.prompts]
        tokens = sum(len(prompt) // TOKEN_BYTES - hit for prompt, hit in zip(chunk.prompts, cached, strict=True))
        steps = math.ceil(len(chunk.prompts) / self._settings.max_num_seqs)
        self._waiting += len(chunk.prompts)
        async with self._device:  # one device: chunks queue up for it
            self._waiting -= len(chunk.prompts)
            await asyncio.sleep((steps * self._settings.step_ms + tokens * self._settings.prefill_ms_per_token) / 1000)
        self._chunks += 1
        if self._settings.fail_after_chunks is not None and self._chunks > self._settings.fail_after_chunks:
            self._failed = True
            await self.check_health()
        latency_ms = (time.perf_counter() - started) * 1000
        return tuple(_answer(prompt, chunk, hit, latency_ms) for prompt, hit in zip(chunk.prompts, cached, strict=True))

    @property
    def waiting(self) -> int:
        return self._waiting

    def _cached_tokens(self, prompt: bytes) -> int:
        """Tokens of the leading cached blocks; then caches all of the prompt's whole blocks."""
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

    async def check_health(self) -> None:
        if self._failed:
            raise EngineFailed("simulated: the engine failed as scripted")

    async def shutdown(self) -> None:
        self._failed = True


def _answer(prompt: bytes, chunk: Chunk, cached: int, latency_ms: float) -> Completion:
    digest = hashlib.sha256(prompt).digest()
    weights = [1 + digest[i % len(digest)] for i in range(len(chunk.label_ids))]
    return Completion(
        text=None if chunk.label_ids else f"simulated-{digest.hex()[:8]}",
        label_logprobs=tuple(math.log(0.9 * weight / sum(weights)) for weight in weights),
        finish_reason="length",
        prompt_tokens=len(prompt) // TOKEN_BYTES,
        cached_tokens=cached,
        completion_tokens=1,
        latency_ms=latency_ms,
    )
