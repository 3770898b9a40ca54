"""A simulated replica behind the gate: its tokens count against limits as vLLM's do."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from serve_app.engine.simulated.engine import SimulatedEngine
from serve_app.serving.gate import accounting
from serve_app.serving.gate.middleware import Gate
from serve_app.settings import AccessSettings, SimulatedSettings

HELLO = [{"role": "user", "content": "Hello"}]


def replica(count: Any, **access: Any) -> Any:
    settings = SimulatedSettings(step_ms=0, prefill_ms_per_token=0)
    return Gate(SimulatedEngine({}, settings, count=count).app(), AccessSettings(**access), "inference")


def asking(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sim")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": ["a", "b c"], "n": 2}),
        ("/v1/embeddings", {"input": ["a", "b c"]}),
    ],
)
async def test_the_account_has_what_the_usage_says(path: str, body: dict[str, Any]) -> None:
    counted = []

    def noting(prompts: Any, completion_tokens: int) -> None:
        accounting.count(prompts, completion_tokens)
        account = accounting.current()
        assert account is not None
        counted.append((account.prompt_tokens, account.completion_tokens))

    async with asking(replica(noting)) as http:
        usage = (await http.post(path, json=body)).json()["usage"]
    assert counted == [(usage["prompt_tokens"], usage["completion_tokens"])]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_over_the_limit_is_refused_as_by_vllm(stream: bool) -> None:
    async with asking(replica(accounting.count, max_prompt_tokens=20)) as http:
        long = [{"role": "user", "content": "word " * 50}]
        short = await http.post("/v1/chat/completions", json={"messages": HELLO, "stream": stream})
        refused = await http.post("/v1/chat/completions", json={"messages": long, "stream": stream})
    assert short.status_code == 200
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "at most 20 tokens (max_prompt_tokens)" in refused.json()["error"]["message"]


def test_without_an_account_nothing_is_counted() -> None:
    accounting.count([10**9], 1)
