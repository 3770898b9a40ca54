"""Chunks whose rows are HTTP requests to the engine's own application in process.

It sets priority, forbids streaming, and reads an answer's status and token counts. Other fields are unknown here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from uuid import uuid4

import msgspec

from serve_app.engine.finishing import as_finished
from serve_app.engine.protocol import ASGIApp
from serve_app.openai.errors import ErrorAnswer
from serve_app.openai.usage import usage_of
from serve_app.schema import Chunk, Completion, HttpResponse
from serve_app.serving.requests.asgi import Answer, HttpRequest, call_app

# The engine is full (vLLM's or another limit): retry after these pauses.
BUSY = (429, 503)
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# Not the row's fault: retry.
PASSING = (401, 403, 408, 429)
# Streams cannot go into files.
REFUSED = ("stream", "background")

Headers = Sequence[tuple[bytes, bytes]]


async def answer_requests(
    app: ASGIApp, chunk: Chunk, *, model: str, check_health: Callable[[], Awaitable[None]], headers: Headers = ()
) -> AsyncGenerator[dict[int, Completion]]:
    """Completions of the chunk's requests, by their place in it, as they finish; all run at once.

    An answer below 400 is `ok`, 4xx `invalid`, both with `response`; others are `failed`. `model` fills bodies without
    one, `headers` (such as authorisation) go with every request. Before a failed row raises what `check_health` raises,
    with what was not yielded undone. Closing disconnects the clients, which aborts the rest.
    """
    asked = [_complete(app, chunk, body, model, headers) for body in chunk.prompts]
    async with aclosing(as_finished(asked)) as rows:
        async for completions in rows:
            failed = {place: one for place, one in completions.items() if one.status == "failed"}
            if not failed:
                yield completions
                continue
            if answered := {place: one for place, one in completions.items() if place not in failed}:
                yield answered
            await check_health()
            yield failed


async def _complete(app: ASGIApp, chunk: Chunk, body: bytes, model: str, headers: Headers) -> Completion:
    started = time.perf_counter()
    request_id = uuid4().hex
    asked = prepare(body, model=model, priority=chunk.priority)
    if isinstance(asked, str):
        return _refused(asked, request_id)
    request = HttpRequest(_scope(chunk.path, request_id, len(asked), headers), asked)
    try:
        answer = await _ask(app, request)
    except Exception as error:
        return Completion(status="failed", error=f"{type(error).__name__}: {error}")
    return _completion(answer, request_id, (time.perf_counter() - started) * 1000)


def prepare(body: bytes, *, model: str, priority: int) -> bytes | str:
    """The body with model and priority, or (str) the forbidden field. Other bytes, and anything but a JSON object, stay
    for the application to check.
    """
    try:
        fields = _decode(body)
    except (ValueError, RecursionError):
        return body
    for name in REFUSED:
        if bytes(fields.get(name, b"null")) not in (b"null", b"false"):
            return name
    if bytes(fields.get("model", b"null")) == b"null":
        fields["model"] = msgspec.Raw(_encode(model))
    fields["priority"] = msgspec.Raw(b"%d" % priority)
    return _encode(fields)


async def _ask(app: ASGIApp, request: HttpRequest) -> Answer:
    for pause_s in PAUSES_S:
        answer = await call_app(app, request)
        if answer.status not in BUSY:
            return answer
        await asyncio.sleep(pause_s)
    return await call_app(app, request)


def _completion(answer: Answer, request_id: str, latency_ms: float) -> Completion:
    if answer.status >= 500 or answer.status in PASSING:
        said = answer.body[:300].decode(errors="replace")
        return Completion(status="failed", error=f"HTTP {answer.status}: {said}", latency_ms=latency_ms)
    response = HttpResponse(answer.status, request_id, answer.body)
    try:
        usage = usage_of(answer.body)
    except (ValueError, RecursionError) as error:
        return Completion(status="failed", error=f"HTTP {answer.status} with what is no JSON object: {error}")
    if answer.status >= 400:
        refused = f"HTTP {answer.status}"
        return Completion(status="invalid", error=refused, latency_ms=latency_ms, response=response)
    return Completion(
        prompt_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.output_tokens,
        latency_ms=latency_ms,
        response=response,
    )


def _refused(field: str, request_id: str) -> Completion:
    message = f"{field}: rows are answered whole; leave it out"
    error = ErrorAnswer(status=400, message=message, param=field, code="unsupported_parameter")
    response = HttpResponse(error.status, request_id, error.body)
    return Completion(status="invalid", error=message, response=response)


def _scope(path: str, request_id: str, length: int, headers: Headers) -> dict[str, object]:
    own = [
        (b"host", b"rows"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % length),
        (b"x-request-id", request_id.encode()),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*own, *headers],
        "client": ("127.0.0.1", 0),
        "server": ("rows", 80),
    }


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
