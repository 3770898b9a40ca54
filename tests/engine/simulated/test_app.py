"""What all routes have in common: models, the mark, and errors as OpenAI's clients know them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from serve_app.engine.simulated.app import build_app
from serve_app.engine.simulated.engine import SimulatedEngine
from serve_app.serving.routes import add_routes, close_admin_routes
from serve_app.settings import SimulatedSettings

HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}
WRONG_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "?"}}}
CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


async def test_every_name_is_listed_and_answered(client: AsyncOpenAI) -> None:
    models = (await client.models.list()).data
    assert [(model.id, model.owned_by) for model in models] == [("sim", "simulated"), ("alias", "simulated")]
    for model in models:
        answer = await client.chat.completions.create(model=model.id, messages=HELLO)
        assert answer.model == model.id


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/version", "/nothing"])
async def test_every_answer_is_marked(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).headers["x-serve-app-simulated"] == "true"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO}),
        (TEXT, {"prompt": "a"}),
        (EMBED, {"input": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
async def test_an_unknown_model_is_404_everywhere(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await http.post(path, json={"model": "gpt-9", **body})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model `gpt-9` does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert (await http.post(path, json=body)).status_code == 200


async def test_the_stock_client_raises_its_own_errors(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="sim", messages=HELLO, temperature=3)
    assert wrong.value.param == "temperature"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "king", "content": "a"}]}, "messages.0.role"),
        (CHAT, {"messages": HELLO, "temperature": -1}, "temperature"),
        (CHAT, {"messages": HELLO, "top_p": 0}, "top_p"),
        (CHAT, {"messages": HELLO, "n": 0}, "n"),
        (CHAT, {"messages": HELLO, "n": 2, "temperature": 0}, "n"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": 5000}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "a " * 5000}]}, "messages"),
        (CHAT, {"messages": HELLO, "stop": ""}, "stop"),
        (CHAT, {"messages": HELLO, "top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"messages": HELLO, "tools": []}, "tools"),
        (CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"messages": HELLO, "tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "tool_choice"),
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT, {"messages": HELLO, "response_format": WRONG_SCHEMA}, "response_format.json_schema.schema"),
        (CHAT, {"messages": HELLO, "structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        (CHAT, {"messages": HELLO, "structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        (TEXT, {}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        (TEXT, {"prompt": "a", "suffix": "b"}, "suffix"),
        (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (EMBED, {}, "input"),
        (EMBED, {"input": []}, "input"),
        (EMBED, {"input": "a", "dimensions": 0}, "dimensions"),
        (EMBED, {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("/v1/responses", {"input": "a", "background": True}, "background"),
        ("/v1/responses", {"input": [{"type": "computer_call"}]}, "input"),
        ("/v1/responses", {"input": []}, "input"),
    ],
)  # fmt: skip
async def test_a_wrong_value_is_400_and_named(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {"messages": HELLO, "response_format": schema({"$schema": 5})}, 400),
        (CHAT, {"messages": HELLO, "response_format": schema({"$dynamicRef": "#a"})}, 400),
        (CHAT, {"messages": HELLO, "response_format": schema({"const": "\ud800"})}, 400),
        (CHAT, {"messages": HELLO, "response_format": schema({"enum": []})}, 400),
        (CHAT, {"messages": HELLO, "n": None, "stop": None, "tools": None, "max_tokens": None, "logprobs": None}, 200),
        (CHAT, {"messages": [{"role": "user", "content": [{"text": 5}]}]}, 200),
        (EMBED, {"input": "a", "encoding_format": None, "dimensions": None}, 200),
        ("/v1/responses", {"input": "a", "instructions": "\ud800"}, 200),
        ("/v1/responses", {"input": [{"role": "user", "content": 5}]}, 400),
    ],
)
async def test_odd_values_are_never_the_servers_fault(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int
) -> None:
    content = json.dumps(body).encode()
    answer = await http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text


async def test_a_body_that_is_no_json_is_400(http: httpx.AsyncClient) -> None:
    answer = await http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_context_that_is_too_short_has_openais_code(http: httpx.AsyncClient) -> None:
    answer = await http.post(TEXT, json={"prompt": "a " * 5000})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "4096 tokens" in answer.json()["error"]["message"]


async def test_a_lost_engine_is_500_on_every_route_that_needs_it() -> None:
    engine = SimulatedEngine({}, SimulatedSettings(step_ms=0, fail_after_chunks=0))
    app: Any = engine.app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sim") as http:
        for path, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"}), (EMBED, {"input": "a"})):
            answer = await http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert (await http.get("/health")).status_code == 500


async def test_the_replica_makes_it_a_whole_server(http: httpx.AsyncClient) -> None:
    async def scrape() -> str:
        return ""

    engine = SimulatedEngine({"served_model_name": "sim"}, SimulatedSettings())
    app: Any = engine.app()
    add_routes(app, scrape)
    close_admin_routes(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sim") as whole:
        model = await whole.get("/v1/models/sim")
        assert model.json()["owned_by"] == "simulated"
        assert model.headers["x-serve-app-simulated"] == "true"
        assert (await whole.get("/v1/models/other")).status_code == 404


def test_neither_vllm_nor_torch_is_imported() -> None:
    modules = f"{build_app.__module__}, {SimulatedEngine.__module__}"
    code = f"import sys; import {modules}; print({{'vllm', 'torch', 'transformers'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
