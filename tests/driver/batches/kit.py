"""A driver of batches over replicas whose HTTP application is real, and a clock."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openai.types import Batch

from serve_app.driver.batches.files import FileStore
from serve_app.driver.batches.record import BatchRequest
from serve_app.driver.batches.registry import BatchRegistry
from serve_app.driver.jobs.registry import Jobs
from serve_app.openai.errors import model_not_found
from serve_app.schema import Chunk, Completion, Finished
from serve_app.serving.requests.http_rows import answer_requests
from tests.fakes import FakePool

CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


def engine_app() -> FastAPI:
    """Answers as a replica does, in what matters here; `status` in a body is what it is answered with."""
    app = FastAPI()

    @app.post(CHAT)
    async def chat(request: Request) -> JSONResponse:
        body = await request.json()
        await asyncio.sleep(body.get("wait_s", 0))
        if body["model"] != "fake":
            return JSONResponse(json.loads(model_not_found(body["model"]).body), status_code=404)
        text = body["messages"][-1]["content"]
        choice = {"index": 0, "message": {"role": "assistant", "content": text.upper()}, "finish_reason": "stop"}
        details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, **details}
        answer = {"id": "chatcmpl-1", "model": "fake", "choices": [choice], "usage": usage, "seen": body}
        return JSONResponse(answer, status_code=body.get("status", 200))

    return app


class HttpPool(FakePool):
    """Fake replicas with that application."""

    def __init__(self, names: list[str], **faults: Any) -> None:
        super().__init__(names, **faults)
        self.app = engine_app()

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        async for finished in super().run(replica_id, chunk):
            if not chunk.path:
                yield finished
                continue
            async for completions in answer_requests(self.app, chunk, model="fake", check_health=self.check_health):
                yield msgspec.structs.replace(finished, completions=completions)

    def _answer(self, prompt: bytes, chunk: Chunk) -> Completion:
        return Completion() if chunk.path else super()._answer(prompt, chunk)

    async def check_health(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Driver:
    """One driver's life over a store that may outlive it."""

    def __init__(self, jobs: Jobs, batches: BatchRegistry, files: FileStore) -> None:
        self.jobs, self.batches, self.files = jobs, batches, files

    def upload(self, *lines: Any, purpose: str = "batch") -> str:
        content = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        return self.files.add(io.BytesIO(content), "in.jsonl", purpose).id

    async def create(self, *lines: Any, **fields: Any) -> str:
        asked = {"input_file_id": self.upload(*lines), "endpoint": CHAT, "completion_window": "24h", **fields}
        return str((await self.batches.create(BatchRequest.model_validate(asked)))["id"])

    async def ended(self, batch_id: str) -> dict[str, Any]:
        while (batch := await self.batches.retrieve(batch_id))["status"] not in ENDED:
            await asyncio.sleep(0.01)
        Batch.model_validate(batch, strict=True)
        return batch

    async def reaches(self, batch_id: str, done: int) -> None:
        while (await self.batches.retrieve(batch_id))["request_counts"]["completed"] < done:
            await asyncio.sleep(0.002)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        return [json.loads(line) for line in b"".join(self.files.content(file_id)).splitlines()]

    async def die(self) -> None:
        await self.batches.close()
        await self.jobs.close()


MakeDriver = Callable[..., Awaitable[Driver]]


def ask(custom_id: Any, text: str = "hi", **body: Any) -> dict[str, Any]:
    asked = {"model": "fake", "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked}


def many(count: int) -> list[dict[str, Any]]:
    return [ask(f"r{i}", f"text {i}") for i in range(count)]
