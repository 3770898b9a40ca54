"""Plain HTTP, as in OpenAI's documentation: answers on the wire, and vLLM's further routes."""

from __future__ import annotations

import json

import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.contract, pytest.mark.timeout(900)]
HELLO = [{"role": "user", "content": "Hello!"}]


# --- as in OpenAI's documentation ---


def test_the_documented_chat_request_is_answered(http: httpx.Client, model: str) -> None:
    body = {
        "model": model,
        "messages": [{"role": "developer", "content": "You are a helpful assistant."}, *HELLO],
        "max_completion_tokens": 8,
    }
    answer = http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer $OPENAI_API_KEY"})
    assert answer.status_code == 200
    fields = answer.json()
    assert {"id", "object", "created", "model", "choices", "usage"} <= set(fields)
    assert fields["choices"][0]["message"]["role"] == "assistant"


def test_the_documented_completion_request_is_answered(http: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": "Say this is a test", "max_tokens": 7, "temperature": 0}
    fields = http.post("/v1/completions", json=body).json()
    assert fields["object"] == "text_completion"
    assert fields["choices"][0]["text"]
    assert fields["usage"]["completion_tokens"] <= 7


def test_message_content_may_come_in_parts(http: httpx.Client, model: str) -> None:
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}]
    body = {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 16, "temperature": 0}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_a_stream_is_server_sent_events_that_end_with_done(http: httpx.Client, model: str) -> None:
    body = {"model": model, "messages": HELLO, "max_tokens": 6, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_the_model_list_is_openais_list(http: httpx.Client, model: str) -> None:
    fields = http.get("/v1/models").json()
    assert fields["object"] == "list"
    assert [(entry["id"], entry["object"]) for entry in fields["data"]] == [(model, "model")]
    assert fields["data"][0]["max_model_len"] > 0


# --- vLLM's further routes ---


def test_text_survives_tokenize_and_detokenize(http: httpx.Client, model: str) -> None:
    text = "Grüße, 世界! 🙂\n\ttabs and  spaces"
    tokens = http.post("/tokenize", json={"model": model, "prompt": text, "add_special_tokens": False}).json()
    assert tokens["count"] == len(tokens["tokens"]) > 0
    back = http.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]}).json()
    assert back["prompt"] == text


def test_a_chat_is_tokenized_with_the_models_template(http: httpx.Client, model: str) -> None:
    fields = http.post("/tokenize", json={"model": model, "messages": HELLO, "return_token_strs": True}).json()
    assert fields["token_strs"][0] == "<|im_start|>"
    assert len(fields["token_strs"]) == fields["count"]


def test_conversations_may_come_in_a_batch(http: httpx.Client, model: str) -> None:
    asked = [[{"role": "user", "content": f"What is the capital of {where}?"}] for where in ("France", "Italy")]
    body = {"model": model, "messages": asked, "max_tokens": 16, "temperature": 0}
    choices = http.post("/v1/chat/completions/batch", json=body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    # Its own country in each: whether a model this small knows Rome depends on rounding.
    for choice, own, other in ((choices[0], "France", "Italy"), (choices[1], "Italy", "France")):
        assert own in choice["message"]["content"]
        assert other not in choice["message"]["content"]


def test_anthropics_messages_are_answered_and_counted(http: httpx.Client, model: str) -> None:
    body = {"model": model, "max_tokens": 16, "temperature": 0, "messages": HELLO, "system": "Be brief."}
    fields = http.post("/v1/messages", json=body).json()
    assert (fields["type"], fields["role"]) == ("message", "assistant")
    assert fields["content"][0]["text"]
    counted = http.post("/v1/messages/count_tokens", json={"model": model, "messages": HELLO, "system": "Be brief."})
    assert counted.json()["input_tokens"] == fields["usage"]["input_tokens"]


def test_generative_scoring_gives_each_item_a_probability(http: httpx.Client, model: str) -> None:
    labels = [http.post("/tokenize", json={"prompt": word}).json()["tokens"][0] for word in (" Paris", " Rome")]
    body = {
        "model": model,
        "query": "The capital of ",
        "items": ["France is", "Italy is"],
        "label_token_ids": labels,
    }
    france, italy = http.post("/generative_scoring", json=body).json()["data"]
    assert (france["index"], italy["index"]) == (0, 1)
    assert 0 <= italy["score"] < france["score"] <= 1


def test_sagemakers_invocations_are_chats_or_completions(http: httpx.Client, model: str) -> None:
    chat = http.post("/invocations", json={"model": model, "messages": HELLO, "max_tokens": 2}).json()
    text = http.post("/invocations", json={"model": model, "prompt": "Hello", "max_tokens": 2}).json()
    assert (chat["object"], text["object"]) == ("chat.completion", "text_completion")


def test_health_version_load_and_metrics_answer(http: httpx.Client) -> None:
    assert http.get("/health").status_code == http.get("/ping").status_code == 200
    assert http.get("/version").json()["version"]
    assert http.get("/load").json()["server_load"] >= 0
    metrics = http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "vllm:num_requests_running" in metrics.text
    assert "/v1/chat/completions" in http.get("/openapi.json").json()["paths"]
