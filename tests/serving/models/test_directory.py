"""Several models behind one URL: fake handles, real applications behind them, and a real HTTP server in front."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError

from serve_app.serving.models import deployment as models
from serve_app.serving.models import directory
from serve_app.serving.requests.asgi import forward
from tests.serving.models.kit import Cluster, Engine, until


@pytest.mark.parametrize(
    ("model", "application"),
    [
        ("small", "a"),
        ("small-adapter", "a"),
        ("large", "b"),
        ("org/large-adapter", "b"),
        (None, "a"),
        ("", "a"),
        (7, "a"),
    ],
)
async def test_a_request_goes_to_the_application_that_serves_its_model_and_else_to_the_first(
    cluster: Cluster, model: Any, application: str
) -> None:
    await cluster.post({"messages": [{"content": "hello"}], "model": model})
    asked = {name: len(engine.asked) for name, engine in (("a", cluster.a), ("b", cluster.b))}
    assert asked == {"a": 0, "b": 0} | {application: 1}


@pytest.mark.parametrize(("model", "application"), [("large", "b"), ("small", "a"), (None, "a")])
async def test_a_form_goes_to_the_application_that_serves_its_model_too(
    cluster: Cluster, model: str | None, application: str
) -> None:
    form = {"language": "en"} | ({"model": model} if model else {})
    request = httpx.Request("POST", "http://test/", data=form, files={"file": ("a.wav", b"\0\xff" * 5000)})
    answer = await cluster.post(request.read(), headers={"content-type": request.headers["content-type"]})
    engine = {"a": cluster.a, "b": cluster.b}[application]
    assert answer.headers["x-from"] == engine.names[0]
    assert engine.asked[-1][1] == request.content


async def test_a_broken_form_is_the_first_applications_to_refuse(cluster: Cluster) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = await cluster.post(b"--y nothing", headers={"content-type": kind})
        assert answer.headers["x-from"] == "small"


@pytest.mark.parametrize("body", [b"", b"not JSON", b'["large"]', b'{"model": "large"', b"[" * 100_000, b'"large"'])
async def test_a_body_that_names_no_model_is_the_first_applications_to_refuse(cluster: Cluster, body: bytes) -> None:
    assert (await cluster.post(body)).headers["x-from"] == "small"
    assert cluster.a.asked[0][1] == body


async def test_requests_without_body_go_to_the_first_application(cluster: Cluster) -> None:
    assert (await cluster.get("/health?full=1")).headers["x-query"] == "full=1"
    assert [path for path, _, _ in cluster.a.asked] == ["/health"]


async def test_an_unknown_model_is_refused_in_openais_words(cluster: Cluster) -> None:
    answer = await cluster.post({"model": "nobody's"})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model `nobody's` does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert cluster.a.asked == cluster.b.asked == []
    openai = AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=cluster.client(), max_retries=0)
    with pytest.raises(NotFoundError) as raised:
        await openai.models.retrieve("nobody's")
    assert raised.value.code == "model_not_found"
    assert (await openai.models.retrieve("org/large-adapter")).id == "org/large-adapter"


async def test_a_model_whose_name_is_no_text_is_not_found_either(cluster: Cluster) -> None:
    answer = await cluster.post(b'{"model": "\\udcff"}')
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_an_unknown_model_is_a_503_as_long_as_an_application_has_not_said_what_it_serves(
    cluster: Cluster,
) -> None:
    cluster.handles["b"].engines.clear()
    answer = await cluster.post({"model": "large"})
    assert answer.status_code == 503
    assert "no replica of b has said" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0
    cluster.handles["b"].engines.append(cluster.b)
    assert (await cluster.post({"model": "large"})).headers["x-from"] == "large"


async def test_names_in_the_settings_are_known_while_no_replica_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, b=["large"])
    cluster.handles["b"].engines.clear()
    cluster.handles["b"].fault = lambda request: forward(cluster.b.app, request)  # Serve starts one for the call
    assert (await cluster.post({"model": "large"})).headers["x-from"] == "large"
    assert [card["id"] for card in (await cluster.get("/v1/models")).json()["data"]] == [
        "small",
        "small-adapter",
        "large",
    ]
    assert (await cluster.post({"model": "nobody's"})).status_code == 404


async def test_an_application_that_is_not_deployed_yet_is_found_once_it_is(cluster: Cluster) -> None:
    late = cluster.handles.pop("a")
    assert (await cluster.post({"model": "large"})).status_code == 207
    answer = await cluster.post({})
    assert answer.status_code == 503
    assert "application 'a' is not deployed" in answer.json()["error"]["message"]
    cluster.handles["a"] = late
    assert (await cluster.post({})).headers["x-from"] == "small"


async def test_what_an_application_once_said_is_known_when_its_replicas_are_gone(cluster: Cluster) -> None:
    before = (await cluster.get("/v1/models")).json()
    cluster.handles["b"].engines.clear()
    assert (await cluster.get("/v1/models")).json() == before


async def test_an_adapter_that_one_replica_loaded_later_is_found(cluster: Cluster) -> None:
    await cluster.get("/v1/models")
    cluster.handles["b"].engines.append(Engine("large", "fresh"))
    assert (await cluster.post({"model": "fresh"})).headers["x-from"] == "large"


async def test_the_list_is_that_of_all_applications_each_model_once(cluster: Cluster) -> None:
    cluster.handles["a"].engines.append(Engine("small", "large"))
    listed = (await cluster.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["small", "small-adapter", "large", "org/large-adapter"]
    assert listed["data"][0]["root"] == "of small"
    assert (await cluster.get("/v1/models/small-adapter")).json() == listed["data"][1]


async def test_known_models_ask_nobody_and_many_unknown_ones_ask_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "REFRESH_S", 60.0)
    await asyncio.gather(*(cluster.post({"model": f"unknown {i}"}) for i in range(20)))
    await asyncio.gather(*(cluster.post({"model": "large"}) for i in range(20)))
    assert {handle.broadcasts for handle in cluster.handles.values()} == {1}


async def test_replicas_that_hang_delay_a_list_by_so_much_and_no_known_model_at_all(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.get("/v1/models")
    monkeypatch.setattr(models, "LIST_TIMEOUT_S", 0.01)
    cluster.handles["b"].hold = asyncio.Event()
    async with asyncio.timeout(5):
        assert len((await cluster.get("/v1/models")).json()["data"]) == 4
    monkeypatch.setattr(models, "LIST_TIMEOUT_S", 60.0)
    async with asyncio.timeout(5):
        assert (await cluster.post({"model": "large"})).status_code == 207


async def test_who_asks_first_and_leaves_takes_the_list_from_nobody(cluster: Cluster) -> None:
    hold = cluster.handles["a"].hold = asyncio.Event()
    first = asyncio.create_task(cluster.get("/v1/models"))
    await until(lambda: cluster.handles["a"].broadcasts == 1)
    second = asyncio.create_task(cluster.get("/v1/models"))
    await asyncio.sleep(0.01)
    first.cancel()
    hold.set()
    assert len((await second).json()["data"]) == 4
