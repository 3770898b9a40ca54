"""OpenTelemetry: one trace per request, with the replica's server span and vLLM's engine span below.

    client's traceparent ─> POST /v1/chat/completions     this module, by OpenTelemetry's ASGI middleware
                            └ llm_request                 vLLM, with time in queue, to first token, tokens

Enabled by OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) or the engine option `otlp_traces_endpoint`; otherwise
nothing is imported. Other settings are OpenTelemetry's variables (OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
OTEL_EXPORTER_OTLP_HEADERS, …).

Serve's tracing (RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH) in Ray 2.60 also traces each driver poll, and loses sampling
decisions between processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

from serve_app.engine.protocol import ASGIApp
from serve_app.errors import BadSettings

ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL, TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
HTTP, GRPC = "http/protobuf", "grpc"
SERVICE_NAME, RESOURCE = "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"
OPTION = "otlp_traces_endpoint"
# Polled, or without an engine.
NOT_TRACED = "/health$,/ping$,/load$,/version$,/metrics$"
CONTEXT_HEADERS = (b"traceparent", b"tracestate")
FLUSH_MS = 5000


def configure(
    options: Mapping[str, Any], replica_id: str, environment: MutableMapping[str, str] = os.environ
) -> dict[str, Any]:
    """The engine's options with the traces' endpoint, if any; call before the start. Sets environment variables for
    EngineCore, its workers and OpenTelemetry's SDK. Raises BadSettings for a protocol that vLLM lacks.
    """
    traces = options.get(OPTION) or environment.get(TRACES_ENDPOINT) or _from_base(environment)
    if not traces:
        return dict(options)
    if not options.get(OPTION) or environment.get(PROTOCOL):
        # vLLM reads only the traces' variable; its gRPC default differs from OpenTelemetry's HTTP.
        environment.setdefault(TRACES_PROTOCOL, _protocol(environment))
    environment[TRACES_ENDPOINT] = traces
    environment.setdefault(SERVICE_NAME, "serve_app")
    known = environment.get(RESOURCE, "")
    if "service.instance.id=" not in known:
        environment[RESOURCE] = ",".join(filter(None, [known, f"service.instance.id={replica_id}"]))
    return {**options, OPTION: traces}


def _from_base(environment: Mapping[str, str]) -> str:
    base = environment.get(ENDPOINT, "").rstrip("/")
    return f"{base}/v1/traces" if base and _protocol(environment) == HTTP else base


def _protocol(environment: Mapping[str, str]) -> str:
    protocol = environment.get(TRACES_PROTOCOL) or environment.get(PROTOCOL) or HTTP
    if protocol not in (HTTP, GRPC):
        raise BadSettings(f"{TRACES_PROTOCOL}={protocol}: traces can be sent by {HTTP} or {GRPC}")
    return protocol


def traced(app: ASGIApp, environment: Mapping[str, str] = os.environ) -> ASGIApp:
    """The application with a server span per request, unchanged without tracing. Call once the engine runs. Raises
    BadSettings if OpenTelemetry's ASGI instrumentation is missing.
    """
    if not environment.get(TRACES_ENDPOINT):
        return app
    try:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    except ImportError as error:
        raise BadSettings(
            f"{TRACES_ENDPOINT} is set, and opentelemetry-instrumentation-asgi is not installed: pip install it"
        ) from error
    from opentelemetry.metrics import NoOpMeterProvider

    _set_provider(environment)
    middleware = OpenTelemetryMiddleware(
        PassContext(app),
        excluded_urls=NOT_TRACED,
        meter_provider=NoOpMeterProvider(),  # Serve counts
        exclude_spans=["receive", "send"],  # one per streamed token
    )
    return Traced(app, middleware)


def _set_provider(environment: Mapping[str, str]) -> None:
    """Export spans unless vLLM does: a process has one provider."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    exporter: SpanExporter
    if _protocol(environment) == HTTP:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

        exporter = http.OTLPSpanExporter(endpoint=environment[TRACES_ENDPOINT])
    else:
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        exporter = grpc.OTLPSpanExporter(endpoint=environment[TRACES_ENDPOINT])
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def flush(environment: Mapping[str, str] = os.environ) -> None:
    """Send remaining spans, blocking up to FLUSH_MS: Serve ends replicas without telling the SDK."""
    if environment.get(TRACES_ENDPOINT):
        from opentelemetry import trace

        if force_flush := getattr(trace.get_tracer_provider(), "force_flush", None):
            force_flush(FLUSH_MS)


class Traced:
    """`middleware` around `app`, whose other attributes Serve reads."""

    def __init__(self, app: ASGIApp, middleware: ASGIApp) -> None:
        self._app = app
        self._middleware = middleware

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._middleware(scope, receive, send)


class PassContext:
    """Puts the current span into headers, for vLLM to find its parent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # vLLM reads only W3C Trace Context.
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context: dict[str, str] = {}
        if scope["type"] == "http":
            TraceContextTextMapPropagator().inject(context)
        if context:
            kept = [(name, value) for name, value in scope["headers"] if name.lower() not in CONTEXT_HEADERS]
            scope = {**scope, "headers": kept + [(name.encode(), value.encode()) for name, value in context.items()]}
        await self._app(scope, receive, send)
