"""What is written of a request: its id, its line, its metrics."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.serving.gate.limits import duration
from serve_app.serving.gate.request_metrics import RequestMetrics
from tests.serving.gate.kit import Site, error, lines


async def test_a_client_s_request_id_reaches_the_application_and_comes_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    answer = await site.post(headers={"x-request-id": "trace-1"})
    assert (answer.json()["id"], answer.headers.get_list("x-request-id")) == ("trace-1", ["trace-1"])
    made = await site.post()
    assert made.json()["id"] == made.headers["x-request-id"]
    assert len(made.json()["id"]) == 32


async def test_behind_serve_s_proxy_the_id_is_not_sent_twice(tmp_path: Path) -> None:
    answer = await Site(tmp_path, echo=False).post(headers={"x-request-id": "from-the-proxy"})
    assert "x-request-id" not in answer.headers
    assert answer.json()["id"] == "from-the-proxy"


@pytest.mark.parametrize("bad", ["a b", "é", "x" * 129, "", "a\tb"])
async def test_a_request_id_that_would_spoil_a_log_is_refused(tmp_path: Path, bad: str) -> None:
    answer = await Site(tmp_path).post(headers=[("x-request-id", bad.encode())])
    assert (answer.status_code, error(answer)["code"]) == (400, "invalid_request_id")


async def test_every_request_is_one_line_that_names_the_key_and_holds_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path)
    with caplog.at_level(logging.INFO, "serve_app.request"):
        await site.post(headers={"x-request-id": "trace-1"})
        await site.post(key="")
        await site.post("/v1/stream", content=b"not json", json=None)
    served, refused, streamed = lines(caplog)
    assert {name: served[name] for name in ("id", "key", "method", "path", "status", "model")} == {
        "id": "trace-1",
        "key": "alice",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "tiny",
    }
    assert (served["prompt_tokens"], served["completion_tokens"]) == (7, 5)
    assert 0 <= served["ttft_ms"] <= served["duration_ms"]
    assert (refused["status"], refused["refused"], "key" in refused) == (401, "missing_key", False)
    assert (streamed["status"], "model" in streamed) == (200, False)
    everything = "".join(record.getMessage() for record in caplog.records)
    assert site.key not in everything
    assert "secret question" not in everything


async def test_bodies_are_logged_only_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, log_bodies=True)
    with caplog.at_level(logging.INFO, "serve_app.request"):
        await site.post()
        await site.post("/v1/stream")
    asked, streamed = lines(caplog)
    assert "secret question" in asked["request_body"]
    assert streamed["response_body"] == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert site.key not in json.dumps([asked, streamed])


async def test_a_log_line_can_be_turned_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, log_requests=False)
    with caplog.at_level(logging.INFO, "serve_app.request"):
        await site.post()
    assert lines(caplog) == []


async def test_metrics_have_a_label_for_each_route_and_none_for_what_clients_make_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    seen: list[str] = []
    monkeypatch.setattr(RequestMetrics, "record", lambda self, exchange: seen.append(self.route(exchange.scope)))
    async with site.client() as client:
        for job in range(20):
            await client.get(f"/v1/jobs/{job}")
            await client.get(f"/made/up/{job}")
    await site.post(key="")
    assert sorted(set(seen)) == ["/v1/chat/completions", "/v1/jobs/{job_id}", "other"]


async def test_the_gate_shows_the_application_s_own_attributes_and_leaves_its_start_alone(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.gate.routes == site.app.routes
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["type"])

    await Site(tmp_path / "other", app).gate({"type": "lifespan"}, None, None)
    assert asked == ["lifespan"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.0061, "6ms"), (8.64, "8.64s"), (60, "1m0s"), (90.951, "1m30.951s")]
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_passing_a_token_on_costs_microseconds(tmp_path: Path) -> None:
    tokens = 20_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(tokens):
            await send({"type": "http.response.body", "body": b"data: token\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def nobody(message: Any) -> None: ...

    async def seconds(app: Callable[..., Any]) -> float:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        headers = [(b"authorization", b"Bearer " + site.key.encode())]
        started = time.perf_counter()
        await app({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, nobody)
        return time.perf_counter() - started

    site = Site(tmp_path, app)
    extra_s = min([await seconds(site.gate) for _ in range(5)]) - min([await seconds(app) for _ in range(5)])
    assert extra_s / tokens < 20e-6  # about 0.5 µs on an idle machine
