"""The routes and errors that vLLM's application lacks, and the routes that it should not offer."""

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi import HTTPException as FastAPIHTTPException
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel, model_validator

from serve_app.errors import BadSettings, ServerUnavailable
from serve_app.serving.routes import ADMIN_ROUTES, add_routes, close_admin_routes

MODELS = [{"id": "base", "object": "model"}, {"id": "org/name", "object": "model"}, {"id": "lora", "parent": "base"}]
# Routes of vLLM 0.32 that anybody may call.
PUBLIC_ROUTES = {
    "/classify", "/cohere/v2/chat", "/cohere/v2/chat/render", "/detokenize", "/generative_scoring", "/health",
    "/inference/v1/generate", "/invocations", "/load", "/ping", "/pooling", "/rerank", "/score", "/tokenize",
    "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/chat/completions", "/v1/chat/completions/batch",
    "/v1/chat/completions/derender", "/v1/chat/completions/render", "/v1/completions", "/v1/completions/derender",
    "/v1/completions/render", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens", "/v1/messages/render",
    "/v1/models", "/v1/realtime", "/v1/rerank", "/v1/responses", "/v1/responses/render",
    "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/v1/score", "/v1/systemone", "/v2/embed",
    "/v2/rerank", "/version",
}  # fmt: skip


async def scrape() -> str:
    return "vllm:num_requests_running 1\n"


async def no_scrape() -> str:
    raise ServerUnavailable("no agent")


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        if request.headers.get("authorization") == "Bearer wrong":
            return JSONResponse({"error": {"message": "no"}}, 401)
        return {"object": "list", "data": MODELS}

    @app.get("/metrics")
    async def metrics() -> str:
        return "of one replica"

    @app.post("/sleep")
    async def sleep() -> None:
        raise AssertionError("not to be reached")

    @app.get("/refuses")
    async def refuses() -> None:
        raise FastAPIHTTPException(404, "no such adapter", {"x-why": "test"})

    return app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    add_routes(app, scrape)
    return TestClient(app)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["id"].replace("/", "-"))
def test_a_listed_model_is_answered_by_its_id(client: TestClient, model: dict[str, str]) -> None:
    assert client.get(f"/v1/models/{model['id']}").json() == model
    assert client.get(f"/v1/models/{model['id'].replace('/', '%2F')}").json() == model


def test_an_unknown_model_is_404_in_openais_shape(client: TestClient) -> None:
    answer = client.get("/v1/models/none")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error == {
        "message": "The model `none` does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_the_list_stays_with_and_without_a_slash(client: TestClient) -> None:
    assert client.get("/v1/models").json()["data"] == MODELS
    assert client.get("/v1/models/").json()["data"] == MODELS


def test_a_refused_list_is_a_refused_model(client: TestClient) -> None:
    answer = client.get("/v1/models/base", headers={"authorization": "Bearer wrong"})
    assert (answer.status_code, answer.json()) == (401, {"error": {"message": "no"}})


def test_the_new_routes_are_in_the_openapi(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/v1/models/{model_id}" in paths
    assert "/metrics" in paths


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("PUT", "/v1/models", 405)])
def test_unknown_paths_and_methods_are_errors_in_openais_shape(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", None, None)
    assert path in error["message"]


def test_a_method_that_is_not_allowed_is_answered_with_those_that_are(client: TestClient) -> None:
    assert client.put("/v1/models").headers["allow"] == "GET"


def test_a_routes_own_words_and_headers_stay(client: TestClient) -> None:
    answer = client.get("/refuses")
    assert answer.json()["error"]["message"] == "no such adapter"
    assert answer.headers["x-why"] == "test"


def test_metrics_are_the_nodes_as_prometheus_text(client: TestClient) -> None:
    answer = client.get("/metrics")
    assert answer.text == "vllm:num_requests_running 1\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_metrics_say_so_when_the_node_has_no_agent(app: FastAPI) -> None:
    add_routes(app, no_scrape)
    answer = TestClient(app).get("/metrics")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "no agent")


def test_a_closed_route_is_an_unknown_path(app: FastAPI, client: TestClient) -> None:
    close_admin_routes(app)
    assert client.post("/sleep").status_code == 404
    assert "/sleep" not in client.get("/openapi.json").json()["paths"]
    assert client.get("/v1/models").status_code == 200


def test_a_route_that_is_asked_for_stays(app: FastAPI) -> None:
    close_admin_routes(app, keep=["/sleep"])
    with pytest.raises(AssertionError, match="not to be reached"):
        TestClient(app).post("/sleep")


def test_asking_for_a_route_that_is_not_administrative_names_it() -> None:
    with pytest.raises(BadSettings, match="admin_routes: '/slep' is none of vLLM's: .*/sleep"):
        close_admin_routes(FastAPI(), keep=["/slep"])


def declared_routes() -> set[str]:
    """Paths that the installed vLLM declares on any of its routers, from its source."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    found = set()
    for file in (Path(spec.origin).parent / "entrypoints").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                owner, path = node.func.value, node.args[0]
                if isinstance(owner, ast.Name) and owner.id.endswith("router") and isinstance(path, ast.Constant):
                    found.add(str(path.value))
    return found


def test_every_route_of_the_installed_vllm_is_known_to_be_public_or_administrative() -> None:
    declared = declared_routes()
    assert len(declared) > 50
    assert declared - ADMIN_ROUTES - PUBLIC_ROUTES == set()
    # Those that SageMaker's package adds are not in vLLM's source.
    assert ADMIN_ROUTES - declared == {"/adapters", "/adapters/{adapter_name}"}
    assert declared >= PUBLIC_ROUTES
    assert ADMIN_ROUTES.isdisjoint(PUBLIC_ROUTES)


@pytest.fixture(scope="module")
def vllm_app() -> FastAPI:
    """vLLM's application without an engine, with every administrative route that an option can open."""
    from vllm.config import ProfilerConfig
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        args.profiler_config = ProfilerConfig(profiler="torch", torch_profiler_dir="/nowhere")
        args.enable_scale_out = args.enable_fault_tolerance = args.enable_tokenizer_info_endpoint = True
        app: FastAPI = build_app(args, ("generate",), None)
    names = [BaseModelPath(name=name, model_path="/nowhere") for name in ("base", "org/name")]
    app.state.openai_serving_models = OpenAIModelRegistry(SimpleNamespace(max_model_len=64), names)
    return app


@pytest.mark.parametrize("error", [AttributeError("x"), KeyError("x")])
def test_a_fault_while_the_request_is_read_is_the_clients_and_afterwards_the_servers(error: Exception) -> None:
    app = FastAPI()

    class Body(BaseModel):
        field: Any

        @model_validator(mode="before")
        @classmethod
        def look(cls, values: Any) -> Any:
            if values["field"] == "wrong":
                raise error
            return values

    @app.post("/read")
    async def read(body: Body) -> None:
        raise error

    add_routes(app, scrape)
    client = TestClient(app, raise_server_exceptions=False)
    for value, status, kind in (("wrong", 400, "invalid_request_error"), ("right", 500, "server_error")):
        answer = client.post("/read", json={"field": value})
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)


def test_a_handler_that_fails_over_the_servers_fault_does_not_make_it_the_clients(app: FastAPI) -> None:
    @app.exception_handler(OSError)
    async def on_fault(request: Request, error: OSError) -> None:
        raise AttributeError("handler")

    @app.post("/read")
    async def read() -> None:
        raise OSError

    add_routes(app, scrape)
    answer = TestClient(app, raise_server_exceptions=False).post("/read")
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")


def test_what_the_model_cannot_do_is_the_clients_error(app: FastAPI) -> None:
    @app.get("/cannot")
    async def cannot() -> None:
        raise NotImplementedError

    add_routes(app, scrape)
    answer = TestClient(app).get("/cannot")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The model has no /cannot.")


@pytest.mark.engine
def test_all_administrative_routes_of_vllm_itself_can_be_closed_and_all_else_stays(vllm_app: FastAPI) -> None:
    before = {route.path for route in vllm_app.routes}  # type: ignore[attr-defined]
    assert len(before & ADMIN_ROUTES) > 30
    add_routes(vllm_app, scrape)
    close_admin_routes(vllm_app)
    after = {route.path for route in vllm_app.routes}  # type: ignore[attr-defined]
    assert after == before - ADMIN_ROUTES | {"/v1/models/{model_id:path}"}
    client = TestClient(vllm_app)
    for path in before & ADMIN_ROUTES:
        for method in ("GET", "POST"):
            assert client.request(method, path).status_code in (404, 405), path


@pytest.mark.engine
def test_vllms_application_answers_for_one_model_and_refuses_in_openais_shape(vllm_app: FastAPI) -> None:
    client = TestClient(vllm_app)
    assert client.get("/v1/models/org/name").json()["id"] == "org/name"
    assert client.get("/metrics").text == "vllm:num_requests_running 1\n"
    for method, path, status, code in [
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v1/nothing", 404, None),
        ("GET", "/v1/chat/completions", 405, None),
    ]:
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    invalid = client.post("/v1/chat/completions", json={"messages": 5})
    assert (invalid.status_code, invalid.json()["error"]["code"]) == (400, 400)
    choice = {"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}}
    for field in ({"structured_outputs": "json"}, {"structured_outputs": ["json"]}, choice):
        wrong = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}], **field})
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "invalid_request_error"), field


@pytest.mark.engine
def test_vllms_answer_to_an_unknown_model_is_put_in_openais_words(vllm_app: FastAPI) -> None:
    async def refuse(request: Any, raw_request: Request) -> Any:
        return await vllm_app.state.openai_serving_models.check_model(request.model)

    vllm_app.state.openai_serving_chat = SimpleNamespace(create_chat_completion=refuse)
    add_routes(vllm_app, scrape)
    client = TestClient(vllm_app)
    answer = client.post(
        "/v1/chat/completions", json={"model": "gpt-6", "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert (answer.status_code, answer.content) == (404, client.get("/v1/models/gpt-6").content)
    assert answer.json()["error"]["code"] == "model_not_found"
