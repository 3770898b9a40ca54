"""An unknown model is the same answer on a replica, behind several models and in a batch's line."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from serve_app.driver.sources.requests import refused_line, value_and_error
from serve_app.engine.simulated.engine import SimulatedEngine
from serve_app.openai.errors import model_not_found
from serve_app.schema import Chunk
from serve_app.serving.models.directory import Directory
from serve_app.serving.requests.http_rows import answer_requests
from serve_app.serving.routes import add_routes
from serve_app.settings import ModelsSettings, SimulatedSettings
from tests.fakes import in_order

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HELLO = [{"role": "user", "content": "Hello!"}]


async def scrape() -> str:
    return ""


def vllm_says(message: str, param: str | None = "model") -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "NotFoundError", "param": param, "code": 404}}, 404)


@pytest.fixture
def app() -> FastAPI:
    """Answers as vLLM 0.32 does."""
    app = FastAPI()

    @app.post(CHAT)
    async def chat(request: Request) -> Any:
        model = (await request.json())["model"]
        if model != "base":
            return vllm_says(
                f"The model `{model.replace('/srv/models', '<path>')}` does not exist. Valid aliases: base."
            )
        return StreamingResponse(iter(("data: 1\n\n", "data: 2\n\n")), media_type="text/event-stream")

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Any:
        return vllm_says(f"The model `{(await request.json())['model']}` does not exist.", param=None)

    @app.post("/v1/audio/transcriptions")
    async def audio(request: Request) -> Any:
        async with request.form() as form:
            return vllm_says(f"The model `{form['model']}` does not exist.")

    @app.post(MESSAGES)
    async def messages() -> Any:
        error = {"type": "NotFoundError", "message": "The model `gpt-6` does not exist. Valid aliases: base."}
        return JSONResponse({"type": "error", "error": error}, 404)

    @app.post("/v1/responses")
    async def responses() -> Any:
        return vllm_says("Response with id 'resp_1' not found.", param=None)

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": "base"}]}

    add_routes(app, scrape)
    return app


async def ask(app: Any, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request("POST", path, **options)


async def batch_line(app: Any, model: str) -> dict[str, Any]:
    """The line of a batch's error file."""
    body = json.dumps({"model": model, "messages": HELLO}).encode()
    answers = answer_requests(app, Chunk(1, (body,), path=CHAT), model="base", check_health=no_check)
    (completion,) = in_order([completions async for completions in answers])
    assert completion.response is not None
    _, error = value_and_error(completion, completion.response)
    line: dict[str, Any] = json.loads(refused_line("batch_1", "row-1", error or ""))
    return line


async def no_check() -> None: ...


@pytest.mark.parametrize("model", ["gpt-6", "/srv/models/gpt-6", "odd ` name"])
async def test_the_answer_is_the_same_in_all_places(app: FastAPI, model: str) -> None:
    several = Directory(ModelsSettings.model_validate({"applications": [{"name": "a", "models": ["base"]}]}), {})
    simulated = SimulatedEngine({"served_model_name": "base"}, SimulatedSettings())
    body = {"model": model, "messages": HELLO}
    expected = {
        "message": f"The model `{model}` does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    replica = await ask(app, CHAT, json=body)
    assert (replica.status_code, replica.json()) == (404, {"error": expected})
    assert int(replica.headers["content-length"]) == len(replica.content)
    behind = several.missing(model)
    assert (behind.status, behind.body) == (404, replica.content)
    line = await batch_line(app, model)
    assert (line["response"]["status_code"], line["response"]["body"], line["error"]) == (404, replica.json(), None)
    made_up = await ask(simulated.app(), CHAT, json=body)
    assert (made_up.status_code, made_up.content) == (404, replica.content)


async def test_one_model_asked_for_by_name_is_not_found_in_the_same_words(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/v1/models/gpt-6")).content == model_not_found("gpt-6").body


async def test_forms_and_answers_without_a_param_are_put_in_the_same_words(app: FastAPI) -> None:
    form = await ask(app, "/v1/audio/transcriptions", data={"model": "gpt-6"}, files={"file": b"RIFF"})
    embeddings = await ask(app, "/v1/embeddings", json={"model": "gpt-6", "input": "x"})
    assert form.content == embeddings.content == model_not_found("gpt-6").body


@pytest.mark.parametrize(
    ("path", "told"), [(MESSAGES, "Valid aliases: base."), ("/v1/responses", "resp_1"), ("/v1/nothing", "/v1/nothing")]
)
async def test_another_404_passes_as_it_is(app: FastAPI, path: str, told: str) -> None:
    answer = await ask(app, path, json={"model": "gpt-6"})
    assert answer.status_code == 404
    assert told in answer.json()["error"]["message"]
    assert answer.json()["error"].get("code") != "model_not_found"


async def test_a_stream_passes_message_by_message(app: FastAPI) -> None:
    body = json.dumps({"model": "base"}).encode()
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": []}
    sent: list[Any] = []
    requests = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        return requests.pop() if requests else {"type": "http.disconnect"} if len(sent) > 3 else await forever()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert [message.get("body") for message in sent] == [None, b"data: 1\n\n", b"data: 2\n\n", b""]


async def forever() -> Any:
    await asyncio.Event().wait()
