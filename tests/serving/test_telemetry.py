"""One trace a request: the replica's span under the client's, vLLM's under the replica's; nothing when it is off."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from queue import Queue
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app.errors import BadSettings
from serve_app.serving import telemetry
from serve_app.serving.telemetry import configure, traced

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-00"
ON = {telemetry.TRACES_ENDPOINT: "http://127.0.0.1:9/v1/traces"}


# --- settings ---


def test_without_an_endpoint_options_and_environment_stay_as_they_are() -> None:
    environment = {"HOME": "/home/x"}
    assert configure({"model": "m"}, "r1", environment) == {"model": "m"}
    assert environment == {"HOME": "/home/x"}


def test_the_environments_endpoint_becomes_vllms_option_with_opentelemetrys_default_protocol() -> None:
    environment = {telemetry.ENDPOINT: "http://collector:4318/"}
    options = configure({"model": "m"}, "r1", environment)
    assert options == {"model": "m", "otlp_traces_endpoint": "http://collector:4318/v1/traces"}
    assert environment[telemetry.TRACES_ENDPOINT] == options["otlp_traces_endpoint"]
    assert environment[telemetry.TRACES_PROTOCOL] == "http/protobuf"


def test_over_grpc_the_endpoint_has_no_path() -> None:
    environment = {telemetry.ENDPOINT: "http://collector:4317", telemetry.PROTOCOL: "grpc"}
    assert configure({}, "r1", environment) == {"otlp_traces_endpoint": "http://collector:4317"}
    assert environment[telemetry.TRACES_PROTOCOL] == "grpc"


def test_vllms_option_comes_before_the_environment_and_keeps_vllms_default_protocol() -> None:
    environment = {telemetry.ENDPOINT: "http://collector:4318"}
    options = configure({"otlp_traces_endpoint": "http://other:4317"}, "r1", environment)
    assert options["otlp_traces_endpoint"] == environment[telemetry.TRACES_ENDPOINT] == "http://other:4317"
    assert telemetry.TRACES_PROTOCOL not in environment


def test_spans_say_which_replica_they_are_of_beside_what_the_operator_says() -> None:
    environment = {**ON, telemetry.RESOURCE: "deployment.environment=test", telemetry.SERVICE_NAME: "mine"}
    configure({}, "r1", environment)
    assert environment[telemetry.RESOURCE] == "deployment.environment=test,service.instance.id=r1"
    assert environment[telemetry.SERVICE_NAME] == "mine"


def test_a_protocol_that_vllm_has_not_is_refused_by_name() -> None:
    with pytest.raises(BadSettings, match="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/json"):
        configure({}, "r1", {telemetry.ENDPOINT: "http://c", telemetry.PROTOCOL: "http/json"})


# --- spans ---


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)  # once a process; `traced` uses the one that is there
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def engine_app() -> FastAPI:
    """An application that does what vLLM's does: a span below the context in the request's headers."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        context = TraceContextTextMapPropagator().extract(dict(request.headers))
        trace.get_tracer("engine").start_span("llm_request", context=context).end()

        async def tokens() -> Any:
            for token in range(20):
                yield f"data: {token}\n\n"

        return StreamingResponse(tokens(), media_type="text/event-stream")

    @app.get("/health")
    async def health(request: Request) -> dict[str, str]:
        return {"traceparent": request.headers.get("traceparent", "")}

    return app


async def ask(app: Any, method: str = "POST", path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, headers=headers)


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    found = {span.name: span for span in spans.get_finished_spans()}
    assert len(found) == len(spans.get_finished_spans())
    return found


async def test_client_replica_and_engine_are_one_trace(spans: InMemorySpanExporter) -> None:
    answer = await ask(traced(engine_app(), ON), traceparent=SAMPLED, tracestate="vendor=1")
    assert answer.text.count("data:") == 20
    found = by_name(spans)
    assert set(found) == {"POST /v1/chat/completions", "llm_request"}  # and none for each token
    server, engine = found["POST /v1/chat/completions"], found["llm_request"]
    assert server.parent is not None
    assert engine.parent is not None
    assert server.context is not None
    assert f"{server.parent.span_id:016x}" == SPAN_ID
    assert engine.parent.span_id == server.context.span_id
    assert {f"{span.context.trace_id:032x}" for span in found.values() if span.context} == {TRACE_ID}
    assert engine.parent.trace_state == {"vendor": "1"}


async def test_without_a_clients_context_the_replica_begins_the_trace(spans: InMemorySpanExporter) -> None:
    await ask(traced(engine_app(), ON))
    found = by_name(spans)
    server, engine = found["POST /v1/chat/completions"], found["llm_request"]
    assert server.parent is None
    assert engine.parent is not None
    assert server.context is not None
    assert engine.parent.span_id == server.context.span_id


async def test_what_the_client_does_not_sample_leaves_no_span_anywhere(spans: InMemorySpanExporter) -> None:
    await ask(traced(engine_app(), ON), traceparent=NOT_SAMPLED)
    assert spans.get_finished_spans() == ()


async def test_polls_of_health_are_not_traced_and_their_headers_stay(spans: InMemorySpanExporter) -> None:
    answer = await ask(traced(engine_app(), ON), "GET", "/health", traceparent=SAMPLED)
    assert answer.json() == {"traceparent": SAMPLED}
    assert spans.get_finished_spans() == ()


async def test_serve_still_finds_the_attributes_of_the_application() -> None:
    app = engine_app()
    assert traced(app, ON).routes is app.routes  # type: ignore[attr-defined]


@pytest.mark.engine
async def test_vllm_itself_reads_the_parent_where_it_is_put(spans: InMemorySpanExporter) -> None:
    from vllm.tracing import contains_trace_headers, extract_trace_context, extract_trace_headers, instrument_manual

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = Request(scope).headers
        assert contains_trace_headers(headers)
        context = extract_trace_context(extract_trace_headers(headers))
        instrument_manual("llm_request", start_time=time.time_ns(), context=context)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await ask(traced(app, ON), traceparent=SAMPLED)
    found = by_name(spans)
    parent, server = found["llm_request"].parent, found["POST /v1/chat/completions"].context
    assert parent is not None
    assert server is not None
    assert (parent.trace_id, parent.span_id) == (int(TRACE_ID, 16), server.span_id)


# --- a process of its own: what is imported, what is sent ---

PROCESS = """
import asyncio, json, sys
from serve_app.serving.telemetry import configure, flush, traced

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

async def main():
    options = configure({"model": "m"}, "replica-7")
    wrapped = traced(app)
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [], "server": ("h", 80)}
    async def send(message): pass
    await wrapped(scope, None, send)
    flush()
    loaded = any(name.partition(".")[0] == "opentelemetry" for name in sys.modules)
    print(json.dumps({"options": options, "wrapped": wrapped is not app, "loaded": loaded}))

asyncio.run(main())
"""


def run_process(**environment: str) -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], env={**kept, **environment}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_off_means_not_imported() -> None:
    assert run_process() == {"options": {"model": "m"}, "wrapped": False, "loaded": False}


@pytest.fixture
def collector() -> Iterator[tuple[str, Queue[tuple[str, bytes]]]]:
    received: Queue[tuple[str, bytes]] = Queue()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


def test_spans_reach_the_collector_that_the_environment_names(collector: tuple[str, Queue[tuple[str, bytes]]]) -> None:
    url, received = collector
    result = run_process(OTEL_EXPORTER_OTLP_ENDPOINT=url)
    assert result["options"]["otlp_traces_endpoint"] == f"{url}/v1/traces"
    path, body = received.get(timeout=5)
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert (attributes["service.name"], attributes["service.instance.id"]) == ("serve_app", "replica-7")
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["GET /v1/models"]
