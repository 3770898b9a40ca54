"""The simulated answers have the fields that vLLM's own have, no fewer and no others, with values of their types."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.engine  # importing vLLM's classes takes a quarter of a minute

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}]


def same_fields(body: dict[str, Any], model: Any, *, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Raises AssertionError unless the body is what an instance of vLLM's class would write."""
    parsed = model.model_validate(body)
    assert not parsed.model_extra
    assert set(body) | without == set(model.model_fields)


@pytest.mark.parametrize(
    "more", [{}, {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}, {"tools": TOOLS}]
)
async def test_chat(http: httpx.AsyncClient, more: dict[str, Any]) -> None:
    from vllm.entrypoints.openai.chat_completion import protocol
    from vllm.entrypoints.serve.engine.protocol import UsageInfo

    body = (await http.post("/v1/chat/completions", json={"messages": HELLO, **more})).json()
    same_fields(body, protocol.ChatCompletionResponse)
    same_fields(body["usage"], UsageInfo)
    (choice,) = body["choices"]
    same_fields(choice, protocol.ChatCompletionResponseChoice)
    # vLLM leaves out an empty list of calls.
    same_fields(choice["message"], protocol.ChatMessage, without=set() if "tools" in more else {"tool_calls"})
    for entry in (choice["logprobs"] or {}).get("content", []):
        same_fields(entry, protocol.ChatCompletionLogProbsContent)


@pytest.mark.parametrize("more", [{}, {"logprobs": 2, "echo": True}])
async def test_completions(http: httpx.AsyncClient, more: dict[str, Any]) -> None:
    from vllm.entrypoints.openai.completion import protocol

    body = (await http.post("/v1/completions", json={"prompt": "a", **more})).json()
    same_fields(body, protocol.CompletionResponse)
    same_fields(body["choices"][0], protocol.CompletionResponseChoice)
    if more:
        same_fields(body["choices"][0]["logprobs"], protocol.CompletionLogProbs)


@pytest.mark.parametrize(
    ("path", "given"), [("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "a"})]
)
async def test_streams(http: httpx.AsyncClient, path: str, given: dict[str, Any]) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionStreamResponse
    from vllm.entrypoints.openai.completion.protocol import CompletionStreamResponse

    model = ChatCompletionStreamResponse if "messages" in given else CompletionStreamResponse
    asked = {**given, "stream": True, "stream_options": {"include_usage": True}}
    answer = await http.post(f"/v1/{path}", json=asked)
    for line in answer.text.split("\n\n")[:-2]:
        parsed: Any = model.model_validate(json.loads(line.removeprefix("data: ")))
        assert not parsed.model_extra
        assert not any(choice.model_extra for choice in parsed.choices)


async def test_the_others(http: httpx.AsyncClient) -> None:
    from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingResponse
    from vllm.entrypoints.serve.engine.protocol import ModelCard
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeResponse, TokenizeResponse

    same_fields((await http.post("/v1/embeddings", json={"input": "a"})).json(), EmbeddingResponse)
    same_fields((await http.get("/v1/models")).json()["data"][0], ModelCard)
    tokens = (await http.post("/tokenize", json={"prompt": "a", "return_token_strs": True})).json()
    same_fields(tokens, TokenizeResponse)
    same_fields((await http.post("/detokenize", json={"tokens": tokens["tokens"]})).json(), DetokenizeResponse)
    response = (await http.post("/v1/responses", json={"input": "a", "max_output_tokens": 9})).json()
    assert response.pop("system_fingerprint") == "simulated"  # which vLLM's has not
    same_fields(response, ResponsesResponse)
