"""Hostile requests to each route: a good one of which something was made bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tests.abuse.asking import Request
from tests.abuse.documents import FORMATS, hostile_file
from tests.abuse.junk import METHODS, TEMPLATES, TYPES, Junk
from tests.abuse.site import MODEL

CHAT = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"a": {}}}}}
EVERY = {"model": MODEL, "max_tokens": 2, "temperature": 1.0, "top_p": 0.9, "n": 1, "stop": ["a"], "seed": 1,
         "stream": False, "logprobs": None}  # fmt: skip
# A body that is good, of each route of the engine.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**EVERY, "messages": CHAT, "tools": [TOOL], "response_format": SCHEMA, "top_logprobs": 0,
                             "tool_choice": "auto", "stream_options": {"include_usage": True}},
    "/v1/completions": {**EVERY, "prompt": ["a", "b"], "echo": False, "suffix": "a"},
    "/v1/responses": {"model": MODEL, "input": "a", "max_output_tokens": 2, "instructions": "a", "tools": []},
    "/v1/embeddings": {"model": MODEL, "input": ["a"], "dimensions": 8, "encoding_format": "float"},
    "/tokenize": {"model": MODEL, "prompt": "a", "messages": CHAT},
    "/detokenize": {"model": MODEL, "tokens": [1, 2]},
}  # fmt: skip
JOB: dict[str, Any] = {
    "rows": [{"custom_id": "a", "prompt": "b", "n": 1}, {"prompt": "c", "messages": CHAT}], "prompt": "{prompt}",
    "max_tokens": 2, "temperature": 1.0, "top_p": 0.5, "seed": 1, "stop": ["x"], "labels": ["Y", "N"], "priority": 5,
    "metadata": {"a": 1}, "workload": "w", "job_id": "mine", "id_column": "custom_id", "length_column": "n",
    "price": {"replica_hour": 1.0}, "reuse": True, "structured": {"regex": "a*"},
    "provider": {"base_url": "http://127.0.0.1:9/v1", "model": "m", "max_retries": 0, "timeout_s": 1},
}  # fmt: skip
STUDY = {"ad": "a", "size": 2, "seed": 1, "platform": "p", "mode": "score", "swap": "none", "strata": ["gender"],
         "bank": "default", "context": "c"}  # fmt: skip
BATCH = {"input_file_id": "file-" + "0" * 24, "endpoint": "/v1/chat/completions", "completion_window": "24h",
         "metadata": {"a": "b"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600}}  # fmt: skip
PATHS = ("/v1/populations/{}", "/v1/populations/{}/results", "/v1/populations/{}/events", "/v1/populations/{}/resume",
         "/v1/populations/{}/cancel", "/v1/files/{}", "/v1/files/{}/content", "/v1/batches/{}", "/v1/batches/{}/cancel",
         "/v1/models/{}", "/v1/populations", "/v1/files/", "/v1/batches", "/v1/models", "/health", "/metrics",
         "/version",
         "/{}", "/v1/{}", "/v1/populations/replicas", "/openapi.json", "/docs")  # fmt: skip
QUERIES = ("after", "limit", "order", "purpose", "format", "inputs", "x")
HEADERS = ("content-length", "authorization", "x-api-key", "x-request-id", "x-session-id", "origin", "host", "range",
           "content-encoding", "transfer-encoding", "cookie", "accept", "if-range", "x-forwarded-for", "traceparent",
           "expect", "referer", "sec-fetch-site", "accept-encoding", "connection", "upgrade", "x")  # fmt: skip


class Known:
    """Ids that were answered, so that some requests find what they ask for."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def note(self, body: Any) -> None:
        if isinstance(body, dict) and isinstance(given := body.get("id"), str):
            self.ids = [*self.ids[-20:], given]


def hostile_request(junk: Junk, known: Known) -> tuple[str, Request]:
    """The route's name and the request."""
    kinds: tuple[Callable[..., tuple[str, Request]], ...] = (_engine, _job, _job, _batch, _upload, _path, _path)
    route, request = junk.pick(*kinds)(junk, known)
    if junk.random.random() < 0.3:
        request = _with_headers(junk, request)
    if junk.random.random() < 0.1:
        parts = junk.random.randint(1, 50)
        request = _replace(request, parts=parts, cut=junk.pick(None, junk.random.randint(0, parts)))
    return route, request


def _engine(junk: Junk, known: Known) -> tuple[str, Request]:
    path = junk.pick(*BODIES)
    body = junk.changed(BODIES[path])
    if isinstance(body, dict) and junk.random.random() < 0.2:
        body = {**body, "stream": True}
    return f"POST {path}", Request("POST", path, body=junk.encoded(body))


def _job(junk: Junk, known: Known) -> tuple[str, Request]:
    spec = {name: value for name, value in JOB.items() if name == "rows" or junk.random.random() < 0.3}
    if junk.random.random() < 0.7:
        spec.pop("job_id", None)
    spec.pop("provider", None) if junk.random.random() < 0.8 else None
    given = junk.pick("rows", "rows", "source", "generator", "template", "provider")
    if given == "source":
        spec = {**spec, "source": junk.url(), "format": junk.pick(*FORMATS, None)}
        del spec["rows"]
    elif given == "generator":
        spec["generator"] = {"name": junk.pick("ctr", junk.text()), "arguments": junk.changed(STUDY)}
        del spec["rows"]
    elif given == "template":
        spec["prompt"] = junk.pick(*TEMPLATES)
    elif given == "provider":
        spec["provider"] = {
            **JOB["provider"],
            "base_url": junk.url(),
            "api_key_env": junk.pick("", "HOME", junk.text()),
        }
    if junk.random.random() < 0.6:
        spec = junk.changed(spec)
    if isinstance(spec, dict) and junk.random.random() < 0.2:
        return "POST /v1/populations (form)", _form(junk, "/v1/populations", {"spec": json.dumps(spec)})
    return "POST /v1/populations", Request(
        "POST", junk.pick("/v1/populations", "/v1/populations/"), body=junk.encoded(spec)
    )


def _batch(junk: Junk, known: Known) -> tuple[str, Request]:
    body = {**BATCH, "input_file_id": junk.pick(*known.ids, junk.name(), BATCH["input_file_id"])}
    if junk.random.random() < 0.6:
        body = junk.changed(body)
    return "POST /v1/batches", Request("POST", "/v1/batches", body=junk.encoded(body))


def _upload(junk: Junk, known: Known) -> tuple[str, Request]:
    fields = {"purpose": junk.pick("batch", "batch", junk.text())}
    if junk.random.random() < 0.3:
        fields[junk.pick("expires_after", "expires_after[seconds]", junk.text())] = str(junk.value())
    return "POST /v1/files", _form(junk, "/v1/files", fields)


def _form(junk: Junk, path: str, fields: dict[str, str]) -> Request:
    """A form with a hostile file under a hostile name, sometimes broken."""
    mark = b"mark"
    ending, content = hostile_file(junk)
    name = junk.pick(f"rows.{ending}", f"rows.{ending}.gz", junk.name(), f"{junk.name()}.{ending}", junk.text())
    parts = [f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode("utf-8", "surrogatepass")
             for key, value in fields.items()]  # fmt: skip
    disposition = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    parts.append(disposition.encode("utf-8", "surrogatepass") + content)
    body = b"".join(b"--" + mark + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + mark + b"--\r\n"
    if junk.random.random() < 0.15:
        cut = junk.random.randint(0, len(body))
        body = junk.pick(body[:cut], body * 2, b"--" + mark + b"\r\n" * 3, body.replace(b"\r\n", b"\n"), junk.bytes())
    kind = b"multipart/form-data; boundary=" + mark
    return Request("POST", path, headers=((b"content-type", kind),), body=body)


def _path(junk: Junk, known: Known) -> tuple[str, Request]:
    path = junk.pick(*PATHS)
    name = junk.pick(*known.ids) if known.ids and junk.random.random() < 0.4 else junk.name()
    written = junk.pick(quote(name, safe=""), quote(name, safe="/%"), quote(quote(name, safe=""), safe=""))
    method = junk.pick("GET", "GET", "GET", "POST", "DELETE", *METHODS)
    values = [junk.pick(junk.value(), "csv", "parquet", "jsonl", "true", 1) for _ in range(junk.random.randint(0, 3))]
    query = "&".join(f"{junk.pick(*QUERIES)}={quote(str(value).encode('utf-8', 'replace'))}" for value in values)
    raw = junk.pick(query.encode(), query.encode(), query.encode(), b"%ff&&&=%00" + query.encode(), b"a" * 9000)
    return f"any {path}", Request(method, path.replace("{}", written), raw, body=junk.pick(b"", b"{}", junk.bytes()))


def _with_headers(junk: Junk, request: Request) -> Request:
    extra = []
    for _ in range(junk.pick(1, 2, 3, 200)):
        name = junk.pick(*HEADERS)
        value = str(
            junk.pick(junk.text(), junk.number(), "Bearer x", "bytes=0-1,5-", "bytes=-" + "9" * 30, "gzip", "null")
        )
        extra.append((name.encode(), value.encode("latin-1", "replace").replace(b"\r", b"").replace(b"\n", b"")))
    headers = request.headers
    if junk.random.random() < 0.3:
        headers = ((b"content-type", junk.pick(*TYPES).encode("latin-1", "replace")),)
    return _replace(request, headers=(*headers, *extra))


def _replace(request: Request, **fields: Any) -> Request:
    from dataclasses import replace

    return replace(request, **fields)
