"""Completes an engine's HTTP application to an OpenAI server, without administrative routes.

Knows FastAPI and vLLM 0.32's paths, without importing vLLM. Adds or corrects:

    GET /v1/models/{id}   vLLM only lists models
    errors                vLLM answers 404 and 405 of unknown paths and methods as {"detail": …}, and some wrong
                          bodies and what the model cannot do as the server's faults; an unknown model in
                          words of its own (`unknown_model.py`)
    GET /metrics          of the node, not of any one replica (`engine/metrics.py`)
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from typing import Any, cast

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import run_endpoint_function
from starlette.exceptions import HTTPException

from serve_app.engine.metrics import MEDIA_TYPE
from serve_app.errors import BadSettings, ServerUnavailable
from serve_app.openai.errors import ErrorAnswer, model_not_found, of_exception
from serve_app.serving.unknown_model import UnknownModel

logger = logging.getLogger(__name__)

# vLLM's administrative routes act on one random replica without a key (vLLM guards only /v1, /v2, /inference and
# /cohere). `tests/serving/test_routes.py` fails on new unknown routes.
ADMIN_ROUTES = frozenset(
    {
        # Always there for generating models:
        "/scale_elastic_ep",  # restarts engines; else 503 meanwhile
        "/is_scaling_elastic_ep",
        "/kv_event_sources",  # addresses inside the cluster
        # enable_scale_out, tokens_only: ends anybody's requests
        "/inference/v1/abort_requests",
        "/abort_requests",
        # enable_fault_tolerance
        "/fault_tolerance/apply",
        "/fault_tolerance/status",
        # profiler_config
        "/start_profile",
        "/stop_profile",
        # VLLM_ALLOW_RUNTIME_LORA_UPDATING: loads any path, on one replica
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/adapters",
        "/adapters/{adapter_name}",
        # enable_tokenizer_info_endpoint
        "/tokenizer_info",
        # VLLM_SERVER_DEV_MODE
        "/collective_rpc",  # calls any method of the workers
        "/server_info",  # all settings and the environment
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/release_kv_cache_memory",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/pause",
        "/resume",
        "/is_paused",
        "/init_weight_transfer_engine",
        "/shutdown_weight_transfer_engine",
        "/start_weight_update",
        "/start_draft_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/update_weight_version",
        "/weight_info",
        "/weight_checker",
        "/get_world_size",
    }
)


def add_routes(app: FastAPI, scrape: Callable[[], Awaitable[str]]) -> None:
    """`scrape` gives the text of `/metrics`, or raises ServerUnavailable. Call before the first request."""
    # SageMaker's package, used by vLLM, built it already.
    app.middleware_stack = None
    _shape_errors(app)
    _blame_the_client(app)
    _add_model(app)
    _replace_metrics(app, scrape)
    app.add_middleware(UnknownModel)


def close_admin_routes(app: FastAPI, keep: Collection[str] = ()) -> None:
    """Remove vLLM's administrative routes except `keep`. Raises BadSettings for an unknown path in `keep`."""
    if unknown := sorted(set(keep) - ADMIN_ROUTES):
        raise BadSettings(f"{unknown[0]!r} is none of vLLM's: {', '.join(sorted(ADMIN_ROUTES))}", field="admin_routes")
    _remove(app, ADMIN_ROUTES - set(keep))


def _shape_errors(app: FastAPI) -> None:
    # vLLM handles FastAPI's HTTPException; routing raises Starlette's.
    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        path, status = request.url.path, HTTPStatus(error.status_code)
        messages = {
            HTTPStatus.NOT_FOUND: f"There is no {path} here.",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{path} does not take {request.method}.",
        }
        # A route's own message.
        message = messages.get(status, error.detail) if error.detail == status.phrase else error.detail
        answer = _error(status, message)
        answer.headers.update(error.headers or {})
        return answer


def _blame_the_client(app: FastAPI) -> None:
    on_fault: Any = app.exception_handlers.get(Exception)

    # vLLM's validators of `structured_outputs: "json"` or `tools: [{}]` use values before checking types; pydantic does
    # not catch these errors.
    @app.exception_handler(AttributeError)
    @app.exception_handler(KeyError)
    async def on_programming_error(request: Request, error: Exception) -> Response:
        if not _in_endpoint(error):
            return _error(400, f"A field of the request has the wrong type: {error}")
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        if on_fault is None:
            return _error(500, HTTPStatus.INTERNAL_SERVER_ERROR.phrase)
        return cast("Response", await on_fault(request, error))

    @app.exception_handler(NotImplementedError)
    async def on_not_implemented(request: Request, error: NotImplementedError) -> Response:
        return _error(400, str(error) or f"The model has no {request.url.path}.")


def _in_endpoint(error: BaseException | None) -> bool:
    """Whether the error, or the one that it came in handling, came after reading the request."""
    if error is None:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == run_endpoint_function.__name__ for frame in frames) or _in_endpoint(error.__context__)


def _add_model(app: FastAPI) -> None:
    @app.get("/v1/models/{model_id:path}", summary="Show Model", responses={404: {"description": "No such model"}})
    async def show_model(model_id: str, request: Request) -> Response:
        """One of the models that `/v1/models` lists, LoRA adapters too."""
        # The application knows all models.
        transport = httpx.ASGITransport(app)
        headers = {name: request.headers[name] for name in ("authorization",) if name in request.headers}
        async with httpx.AsyncClient(transport=transport, base_url="http://replica", headers=headers) as client:
            listed = await client.get("/v1/models")
        if listed.is_error or not model_id:
            return Response(listed.content, listed.status_code, media_type=listed.headers.get("content-type"))
        for model in listed.json()["data"]:
            if model["id"] == model_id:
                return JSONResponse(model)
        return model_not_found(model_id).response()


def _replace_metrics(app: FastAPI, scrape: Callable[[], Awaitable[str]]) -> None:
    _remove(app, {"/metrics"})

    @app.get("/metrics", summary="Metrics of this node", response_class=Response)
    async def metrics() -> Response:
        """Metrics of vLLM, Serve and the driver on this node, in Prometheus' text format; up to 10 s old."""
        try:
            return Response(await scrape(), media_type=MEDIA_TYPE)
        except ServerUnavailable as error:
            return of_exception(error).response()


def _remove(app: FastAPI, paths: Collection[str]) -> None:
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in paths]
    app.openapi_schema = None


def _error(status: int, message: str) -> Response:
    return ErrorAnswer(status=status, message=message).response()
