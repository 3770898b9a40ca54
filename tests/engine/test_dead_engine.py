"""What vLLM's application tells a request when the engine behind it has died: to try again, not that it is wrong."""

import json
from typing import Any

import httpx
import pytest

from serve_app.engine.launch import outlive_engine
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk
from serve_app.serving.requests.http_rows import answer_requests
from serve_app.serving.routes import add_routes

pytestmark = pytest.mark.engine
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


class Dead:
    errored, is_running = True, False

    async def create_chat_completion(self, *args: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        raise EngineDeadError


@pytest.fixture(scope="module")
def app() -> Any:
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    app = build_app(args, ("generate",), None)
    outlive_engine(app)
    app.state.engine_client = app.state.openai_serving_chat = Dead()
    app.state.args = args

    async def no_metrics() -> str:
        return ""

    add_routes(app, no_metrics)
    return app


async def test_an_online_request_to_a_dead_engine_is_the_servers_fault(app: Any) -> None:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        answer = await client.post(CHAT, json=BODY)
    assert answer.status_code == 500
    assert "EngineCore encountered an issue" in answer.json()["error"]["message"]


async def test_a_row_of_a_batch_on_a_dead_engine_is_not_refused_but_left_for_another(app: Any) -> None:
    async def dead() -> None:
        raise EngineFailed("the engine died")

    chunk = Chunk(0, (json.dumps(BODY).encode(),), path=CHAT)
    with pytest.raises(EngineFailed):
        await anext(answer_requests(app, chunk, model="m", check_health=dead))
