"""Errors over plain HTTP: whatever the route and whatever is wrong, the answer is 4xx and {"error": {"message", …}}."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.contract, pytest.mark.timeout(900)]
HELLO = [{"role": "user", "content": "Hello!"}]
JSON = {"content-type": "application/json"}


def assert_refused(answer: httpx.Response, *codes: int) -> dict[str, Any]:
    """Raise AssertionError unless the answer is an error of one of the codes in OpenAI's shape; its `error`."""
    assert answer.status_code in codes, answer.text
    assert answer.headers["content-type"].startswith("application/json"), answer.text
    body = answer.json()
    assert isinstance(body, dict), body
    error = body.get("error")
    assert isinstance(error, dict), body
    assert isinstance(error["message"], str), body
    assert error["message"], body
    assert isinstance(error["type"], str), body
    assert error.get("code", answer.status_code) in (answer.status_code, None) or isinstance(error["code"], str), body
    return error


GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
TAKING_JSON = (*GENERATING, "/v1/chat/completions/batch", "/tokenize", "/detokenize", "/invocations")


def valid_body(path: str, model: str) -> dict[str, Any]:
    """A body that the route would answer."""
    if "completions" in path and "chat" not in path:
        return {"model": model, "prompt": "Hello", "max_tokens": 2}
    if path == "/v1/responses":
        return {"model": model, "input": "Hello", "max_output_tokens": 2}
    return {"model": model, "messages": HELLO, "max_tokens": 2}


@pytest.mark.parametrize("path", TAKING_JSON)
@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[1, 2", b"null", b"[]", b'"text"', b"17"])
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    assert_refused(http.post(path, content=body, headers=JSON), 400, 422)


@pytest.mark.parametrize("path", TAKING_JSON)
def test_a_body_of_another_media_type_is_refused(http: httpx.Client, path: str) -> None:
    assert_refused(http.post(path, content=b"a=b", headers={"content-type": "text/plain"}), 400, 415, 422)


@pytest.mark.parametrize("path", GENERATING)
def test_an_unknown_model_is_404_on_every_route(http: httpx.Client, model: str, path: str) -> None:
    error = assert_refused(http.post(path, json={**valid_body(path, model), "model": "no-such-model"}), 404)
    assert "no-such-model" in error["message"]
    if path != "/v1/messages":  # Anthropic's shape has no code
        assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("path", GENERATING)
def test_a_prompt_that_is_too_long_is_400_on_every_route(http: httpx.Client, model: str, path: str) -> None:
    long = "word " * 6000
    text = {"prompt": long} if path == "/v1/completions" else {"messages": [{"role": "user", "content": long}]}
    if path == "/v1/responses":
        text = {"input": long}
    assert_refused(http.post(path, json={**valid_body(path, model), **text}), 400)


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": None},
        {"messages": []},
        {"messages": "hello"},
        {"messages": ["hello"]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9"}}]}
            ]
        },
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 2},
        {"max_tokens": -1},
        {"max_tokens": 10**9},
        {"n": 0},
        {"n": 10**30},
        {"seed": 10**30},
        {"priority": 10**30},
        {"logit_bias": {"not a token": 1}},
        {"logit_bias": {"999999999": 1}},
        {"logprobs": True, "top_logprobs": 10**6},
        {"logprobs": True, "logprob_token_ids": [-1]},
        {"logprobs": True, "logprob_token_ids": [10**9]},
        {"allowed_token_ids": [10**9]},
        {"stop_token_ids": [10**30]},
        {"stop": [""]},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        {"structured_outputs": "json"},
        {"structured_outputs": ["json"]},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"grammar": "root ::= ("}},
        {"structured_outputs": {"choice": []}},
        {"tools": []},
        {"tools": ["get_weather"], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"tool_choice": "required"},
        {"stream_options": {"include_usage": True}},
        {"chat_template": "{{ 1/0 }}"},
        {"cache_salt": "\x00"},
    ],
    ids=lambda wrong: json.dumps(wrong)[:60],
)
def test_a_wrong_field_of_a_chat_is_the_clients_error(http: httpx.Client, model: str, wrong: dict[str, Any]) -> None:
    assert_refused(http.post("/v1/chat/completions", json={**valid_body("chat", model), **wrong}), 400, 422)


@pytest.mark.parametrize("field", ["prompt", "stop", "bad_words", "cache_salt", "request_id", "user", "session_id"])
def test_half_a_surrogate_pair_is_never_the_servers_error(http: httpx.Client, model: str, field: str) -> None:
    value = [r"\ud800"] if field == "bad_words" else r"\ud800"
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 2, field: value}).replace(r"\\ud800", r"\ud800")
    answer = http.post("/v1/completions", content=body.encode(), headers=JSON)
    if answer.status_code != 200:
        assert_refused(answer, 400, 422)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "frequency_penalty", "repetition_penalty", "min_p"])
def test_a_number_that_is_none_is_never_the_servers_error(
    http: httpx.Client, model: str, field: str, value: str
) -> None:
    body = f'{{"model": "{model}", "prompt": "Hello", "max_tokens": 2, "{field}": {value}}}'
    assert_refused(http.post("/v1/completions", content=body.encode(), headers=JSON), 400, 422)


@pytest.mark.parametrize("priority", ["1" * 30, "high", "", "-1" + "0" * 30])
def test_a_priority_header_that_is_no_number_is_never_the_servers_error(
    http: httpx.Client, model: str, priority: str
) -> None:
    body = valid_body("/v1/completions", model)
    answer = http.post("/v1/completions", json=body, headers={"x-vllm-priority": priority})
    if answer.status_code != 200:
        assert_refused(answer, 400, 422)


def test_json_nested_a_hundred_thousand_deep_is_the_clients_error(http: httpx.Client) -> None:
    body = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert_refused(http.post("/v1/chat/completions", content=body, headers=JSON), 400, 413, 422)


@pytest.mark.parametrize("path", [*TAKING_JSON, "/v1/embeddings"])
def test_another_method_is_405(http: httpx.Client, path: str) -> None:
    answer = http.delete(path)
    assert_refused(answer, 404 if path == "/v1/embeddings" else 405)
    if answer.status_code == 405:
        assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing", "/v1", "/v1/chat", "/v1/models/no-such-model"])
def test_an_unknown_path_is_404(http: httpx.Client, path: str) -> None:
    assert_refused(http.get(path), 404)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/audio/transcriptions", "/v1/systemone"]
)
def test_what_the_model_cannot_do_is_refused_not_failed(http: httpx.Client, model: str, path: str) -> None:
    assert_refused(http.post(path, json={"model": model, "input": "hello", "state": "", "questions": {}}), 400, 404)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_response_is_404(http: httpx.Client, method: str) -> None:
    path = "/v1/responses/resp_nothing" + ("/cancel" if method == "POST" else "")
    assert_refused(http.request(method, path), 404)


@pytest.mark.parametrize("path", ["/scale_elastic_ep", "/sleep", "/pause", "/collective_rpc", "/start_profile"])
def test_no_client_can_reach_an_administrators_route(http: httpx.Client, path: str) -> None:
    assert_refused(http.post(path, json={}), 400, 403, 404, 405)


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"text"', b"{}", b'{"rows": 1}', b'{"nothing": 1}'])
def test_a_population_that_is_none_is_refused(http: httpx.Client, body: bytes) -> None:
    assert_refused(http.post("/v1/populations/", content=body, headers=JSON), 400, 422)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/populations/no-such-job", 404),
        ("DELETE", "/v1/populations/no-such-job", 404),
        ("POST", "/v1/populations/no-such-job/cancel", 404),
        ("GET", "/v1/populations/no-such-job/nothing", 404),
        ("PUT", "/v1/populations/", 405),
    ],
)
def test_populations_refuse_in_the_same_shape(http: httpx.Client, method: str, path: str, code: int) -> None:
    assert_refused(http.request(method, path), code)
