from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI
from openai.types import CreateEmbeddingResponse

from serve_app.engine.simulated.tokens import encode


async def vectors(http: httpx.AsyncClient, given: Any, **fields: Any) -> np.ndarray[Any, Any]:
    raw = await http.post("/v1/embeddings", json={"model": "sim", "input": given, **fields})
    answer = CreateEmbeddingResponse.model_validate(raw.json())
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data])


async def test_vectors_have_length_one_and_are_the_same_again(http: httpx.AsyncClient) -> None:
    found = await vectors(http, ["a cat", "a dog", ""])
    assert found.shape == (3, 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert (found == await vectors(http, ["a cat", "a dog", ""])).all()


async def test_texts_that_share_words_are_nearer(http: httpx.AsyncClient) -> None:
    asked, right, wrong = await vectors(
        http, ["how do I reset my password", "reset a forgotten password", "delivery times in Norway"]
    )
    assert asked @ right > 0.3 > abs(asked @ wrong)


async def test_tokens_have_the_vector_of_their_text(http: httpx.AsyncClient) -> None:
    (text,) = await vectors(http, "the sky is blue")
    for given in (encode("the sky is blue"), [encode("the sky is blue")]):
        assert (await vectors(http, given) == text).all()


async def test_tokens_of_another_tokenizer_are_words(http: httpx.AsyncClient) -> None:
    # What tiktoken makes of two texts that share three words of four, and of one that shares none.
    asked, right, wrong = await vectors(http, [[791, 13180, 374, 6437], [791, 13180, 374, 2579], [9906, 1917, 0]])
    assert asked @ right > 0.5 > abs(asked @ wrong)


async def test_base64_is_the_same_in_float32(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    (plain,) = await vectors(http, "text")
    raw = (await http.post("/v1/embeddings", json={"input": "text", "encoding_format": "base64"})).json()
    assert (np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4") == plain.astype("f4")).all()
    # The stock client asks for base64 by itself.
    assert np.allclose((await client.embeddings.create(model="sim", input="text")).data[0].embedding, plain)


@pytest.mark.parametrize("size", [1, 8, 1536])
async def test_dimensions_are_as_asked(http: httpx.AsyncClient, size: int) -> None:
    (found,) = await vectors(http, "text", dimensions=size)
    (long,) = await vectors(http, "text", dimensions=2000)
    assert found.shape == (size,)
    assert np.allclose(found, long[:size] / np.linalg.norm(long[:size]), atol=1e-6)


async def test_a_chat_is_embedded_as_vllm_does(http: httpx.AsyncClient) -> None:
    raw = await http.post("/v1/embeddings", json={"messages": [{"role": "user", "content": "text"}]})
    assert len(json.loads(raw.content)["data"][0]["embedding"]) == 384
