"""A simulated replica behind the gate: its tokens count against limits as vLLM's do."""

from __future__ import annotations

import asyncio
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


async def test_what_its_device_has_not_begun_waits_and_more_than_seconds_of_it_get_429() -> None:
    settings = SimulatedSettings(step_ms=50, prefill_ms_per_token=0)  # 20 a second
    engine = SimulatedEngine({}, settings, count=accounting.count, started=accounting.started)
    gate = Gate(engine.app(), AccessSettings(max_queue_s=1), "inference")
    body = {"messages": HELLO, "max_tokens": 1}
    async with asking(gate) as http:
        # First a burst, in which the rate is learnt; then as many again.
        burst = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(60)))
        again = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(60)))
    assert {answer.status_code for answer in burst} == {200}
    taken = [answer.status_code for answer in again].count(200)
    assert 15 <= taken <= 25
    refused = next(answer for answer in again if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert "1 s of work waiting" in refused.json()["error"]["message"]


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
