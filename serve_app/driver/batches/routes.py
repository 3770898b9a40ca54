"""The HTTP routes `/v1/files` and `/v1/batches`, as OpenAI's clients call them.

Does not know where files are stored, nor who runs batches.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal, Protocol, cast, get_args
from urllib.parse import quote

import msgspec
import pydantic
from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from serve_app.driver.batches.files import FileStore, Order
from serve_app.driver.batches.record import BatchRequest, ExpiresAfter
from serve_app.driver.http.bounded import MOST_DOWNLOADS, MOST_UPLOADS, Bounded, Uploads, in_turns
from serve_app.driver.http.control_app import control_app
from serve_app.driver.http.ranges import Span, read_range
from serve_app.errors import BadSettings
from serve_app.openai.errors import ErrorAnswer

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class BatchService(Protocol):
    """What `batches_app` serves: `registry.BatchRegistry`, directly or by a handle. Raises ServeAppErrors."""

    async def create(self, request: BatchRequest) -> dict[str, Any]:
        """A new batch."""

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        """One batch."""

    async def cancel(self, batch_id: str) -> dict[str, Any]:
        """Stop one."""

    async def page(self, *, after: str | None = None, limit: int = 20) -> tuple[list[dict[str, Any]], bool]:
        """A page, newest first, and whether there are more."""


def files_app(files: FileStore) -> FastAPI:
    """The routes under `/v1/files`."""
    app = control_app("serve_app files")
    downloads, uploads = asyncio.Semaphore(MOST_DOWNLOADS), Uploads(MOST_UPLOADS)

    @app.post("", include_in_schema=False)
    @app.post("/")
    async def upload(request: Request) -> Any:
        """Keep a file: a form of `file`, `purpose` and, if wanted, `expires_after`."""
        # Larger files pass through a temporary file: memory stays bounded.
        async with uploads.form(request) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise BadSettings("send a form (multipart/form-data) with the file in this field", field="file")
            purpose = _purpose(form)
            lasts = _expires_after(form)
            name = file.filename or "file"
            stored = await asyncio.to_thread(files.add, file.file, name, purpose, expires_after_s=lasts)
        return msgspec.to_builtins(stored)

    @app.get("", include_in_schema=False)
    @app.get("/")
    def page(
        after: str | None = None,
        limit: int = Query(10_000, ge=1, le=10_000),
        order: Order = "desc",
        purpose: str | None = None,
    ) -> Any:
        """The files, a page at a time."""
        found, more = files.page(after=after, limit=limit, order=order, purpose=purpose)
        return _page(msgspec.to_builtins(found), more)

    @app.get("/{file_id}")
    def retrieve(file_id: str) -> Any:
        """What is known of a file."""
        return msgspec.to_builtins(files.get(file_id))

    @app.get("/{file_id}/content")
    def content(
        file_id: str, range: Annotated[str | None, Header()] = None, if_range: Annotated[str | None, Header()] = None
    ) -> Response:
        """The file's bytes, or those that `Range` asks for."""
        stored = files.get(file_id)
        headers = {
            "accept-ranges": "bytes",
            "etag": f'"{file_id}"',  # a file never changes
            "content-disposition": f"attachment; filename*=utf-8''{quote(stored.filename, safe='')}",
        }
        part = read_range(range, stored.bytes) if if_range in (None, headers["etag"]) else None
        if part is not None and part.start >= part.stop:
            return _not_there(stored.bytes)
        span = part or Span(0, stored.bytes)
        headers["content-length"] = str(span.stop - span.start)
        if part is not None:
            headers["content-range"] = f"bytes {span.start}-{span.stop - 1}/{stored.bytes}"
        blocks = files.content(file_id, *span)
        answer = StreamingResponse(in_turns(blocks), 206 if part else 200, headers, "application/octet-stream")
        return Bounded(answer, downloads)

    @app.delete("/{file_id}")
    def delete(file_id: str) -> Any:
        """Remove a file."""
        files.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return app


def batches_app(batches: BatchService) -> FastAPI:
    """The routes under `/v1/batches`."""
    app = control_app("serve_app batches")

    @app.post("", include_in_schema=False)
    @app.post("/")
    async def create(request: BatchRequest) -> Any:
        """Run the requests of an uploaded file."""
        return await batches.create(request)

    @app.get("", include_in_schema=False)
    @app.get("/")
    async def page(after: str | None = None, limit: int = Query(20, ge=1, le=100)) -> Any:
        """The batches, newest first, a page at a time."""
        return _page(*await batches.page(after=after, limit=limit))

    @app.get("/{batch_id}")
    async def retrieve(batch_id: str) -> Any:
        """State, counts and files."""
        return await batches.retrieve(batch_id)

    @app.post("/{batch_id}/cancel")
    async def cancel(batch_id: str) -> Any:
        """Stop a batch; what is done is in its output file."""
        return await batches.cancel(batch_id)

    return app


# --- forms and pages ---


def _purpose(form: FormData) -> Purpose:
    purpose = form.get("purpose")
    if purpose not in get_args(Purpose):
        raise BadSettings(f"give one of {', '.join(get_args(Purpose))}", field="purpose")
    return cast("Purpose", purpose)


def _expires_after(form: FormData) -> int | None:
    """Seconds: of `expires_after[anchor]` and `expires_after[seconds]`, or of `expires_after` as JSON."""
    parts = {name: form.get(f"expires_after[{name}]") for name in ("anchor", "seconds")}
    given = {name: value for name, value in parts.items() if value is not None}
    try:
        if isinstance(whole := form.get("expires_after"), str):
            return ExpiresAfter.model_validate_json(whole).seconds
        return ExpiresAfter.model_validate(given).seconds if given else None
    except pydantic.ValidationError as error:
        raise BadSettings.of_fields(error.errors(), "expires_after") from error


def _not_there(size: int) -> Response:
    message = f"the file has {size} bytes, and none in this range"
    whole = (b"content-range", b"bytes */%d" % size)
    return ErrorAnswer(status=416, message=message, code="invalid_range", headers=(whole,)).response()


def _page(data: list[Any], more: bool) -> dict[str, Any]:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": more}
