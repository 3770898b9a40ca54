"""Answers `/v1/embeddings`: unit vectors whose similarity grows with shared words.

Each word has a random direction, and a text is the sum of its words. Retrieval over a few documents works, based on
word counts alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.engine.simulated.device import Served
from serve_app.engine.simulated.envelope import check_model, new_id, room, usage
from serve_app.engine.simulated.requests import EmbeddingRequest, prompt_list
from serve_app.engine.simulated.tokens import chat_tokens, decode, encode
from serve_app.schema import pack_tokens


async def answer(served: Served, request: EmbeddingRequest) -> dict[str, Any]:
    """One vector a prompt; fields as in vLLM's EmbeddingResponse. Raises RequestRefused or EngineFailed."""
    model = check_model(served, request.model)
    if request.messages is not None:
        prompts = [chat_tokens(request.messages)]
    else:
        given = prompt_list(request.input or [], "input")
        prompts = [encode(one) if isinstance(one, str) else one for one in given]
    for prompt in prompts:
        room(served, len(prompt), None, "input")
    cached = await served.prefill([pack_tokens(prompt) for prompt in prompts], 0)
    size = request.dimensions or served.embedding_dimensions
    return {
        "id": new_id("embd-"),
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {"index": i, "object": "embedding", "embedding": _encoded(embed(words_of(prompt), size), request)}
            for i, prompt in enumerate(prompts)
        ],
        "usage": usage(sum(map(len, prompts)), 0, sum(cached)),
    }


def words_of(prompt: list[int]) -> list[str]:
    """A text's lower-case words. Tokens of foreign tokenizers count as words."""
    text = decode(prompt)
    return (re.findall(r"\w+", text.lower()) or [text]) if encode(text) == prompt else list(map(str, prompt))


def embed(words: list[str], size: int) -> NDArray[np.float32]:
    """A unit vector (size,) of the words. Smaller sizes are rescaled prefixes of larger ones."""
    total = np.sum([_direction(word, size) for word in words], axis=0)
    unit: NDArray[np.float32] = (total / np.linalg.norm(total)).astype(np.float32)
    return unit


@lru_cache(maxsize=4096)
def _direction(word: str, size: int) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:8])
    return np.random.default_rng(seed).standard_normal(size)


def _encoded(vector: NDArray[np.float32], request: EmbeddingRequest) -> list[float] | str:
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
