"""Batches over fake replicas whose HTTP application is real: everything but the engine, the disk included."""

import asyncio
import json
from typing import Any

import pytest

from serve_app.driver.http.results import stream_results
from serve_app.spec import JobSpec
from tests.driver.batches.kit import CHAT, HttpPool, MakeDriver, ask, many


async def test_each_request_is_answered_with_the_engines_whole_response(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a", "b"]))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    odd = ask("odd é\u2028", "x\u2028y", n=2, seed=7, tools=tools, stop=["."], logprobs=True)
    batch = await driver.ended(await driver.create(*many(40), odd, metadata={"mine": "1"}))
    assert (batch["status"], batch["error_file_id"], batch["errors"]) == ("completed", None, None)
    assert batch["request_counts"] == {"total": 41, "completed": 41, "failed": 0}
    assert (batch["metadata"], batch["model"]) == ({"mine": "1"}, "fake")
    lines = {line["custom_id"]: line for line in driver.lines(batch["output_file_id"])}
    assert set(lines) == {f"r{i}" for i in range(40)} | {"odd é\u2028"}
    assert len({line["id"] for line in lines.values()}) == 41
    for i in range(40):
        response = lines[f"r{i}"]["response"]
        assert lines[f"r{i}"]["error"] is None
        assert response["status_code"] == 200
        assert response["body"]["choices"][0]["message"]["content"] == f"TEXT {i}"
    seen = lines["odd é\u2028"]["response"]["body"]["seen"]
    assert seen == {**odd["body"], "priority": 10}


async def test_usage_adds_up_what_the_responses_say(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    batch = await driver.ended(await driver.create(*many(10)))
    assert batch["usage"] == {
        "input_tokens": 50,
        "input_tokens_details": {"cached_tokens": 20},
        "output_tokens": 30,
        "output_tokens_details": {"reasoning_tokens": 10},
        "total_tokens": 80,
    }
    status = await driver.jobs.status(batch["id"].replace("_", "-"))
    assert (status.prompt_tokens, status.cached_tokens, status.completion_tokens) == (50, 20, 30)


async def test_a_bad_line_is_an_error_of_its_own_and_no_other_row_is_lost(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    bad: list[tuple[Any, str, str | None]] = [
        (b"{not json", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        ({"method": "POST", "url": CHAT, "body": {}}, "missing_required_parameter", None),
        (ask(7), "invalid_type", None),
        (ask("good"), "duplicate_custom_id", "good"),
        ({**ask("url"), "url": "/v1/completions"}, "url_mismatch", "url"),
        ({**ask("get"), "method": "GET"}, "invalid_method", "get"),
        ({**ask("body"), "body": "text"}, "missing_required_parameter", "body"),
        (b'{"custom_id": "\\ud800", "method": "POST"}', "invalid_json_line", None),
        (ask("line-3-invalid"), "invalid_custom_id", None),
    ]
    lines = [ask("good"), b"", *(line for line, _, _ in bad), ask("also good")]
    batch = await driver.ended(await driver.create(*lines))
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 12, "completed": 2, "failed": 10})
    assert {line["custom_id"] for line in driver.lines(batch["output_file_id"])} == {"good", "also good"}
    errors = sorted(driver.lines(batch["error_file_id"]), key=lambda line: int(line["error"]["line"]))
    assert [(line["error"]["line"], line["error"]["code"], line["custom_id"]) for line in errors] == [
        (number, code, custom_id) for number, (_, code, custom_id) in enumerate(bad, 3)
    ]
    assert all(line["response"] is None and line["error"]["message"] for line in errors)


async def test_what_the_engine_refuses_is_in_the_error_file_with_its_own_words(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    lines = [ask("ok"), ask("model", model="gpt-6"), ask("stream", stream=True), ask("long", status=400)]
    batch = await driver.ended(await driver.create(*lines))
    assert batch["request_counts"] == {"total": 4, "completed": 1, "failed": 3}
    errors = {line["custom_id"]: line for line in driver.lines(batch["error_file_id"])}
    assert {name: line["response"]["status_code"] for name, line in errors.items()} == {
        "model": 404, "stream": 400, "long": 400,
    }  # fmt: skip
    assert all(line["error"] is None for line in errors.values())
    assert "gpt-6" in errors["model"]["response"]["body"]["error"]["message"]
    assert errors["stream"]["response"]["body"]["error"]["param"] == "stream"


async def test_a_row_that_every_attempt_fails_is_a_server_error_with_each_attempts_reason(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]), max_attempts=3)
    batch = await driver.ended(await driver.create(ask("ok"), ask("sick", status=500)))
    (line,) = driver.lines(batch["error_file_id"])
    assert (line["custom_id"], line["response"], line["error"]["code"]) == ("sick", None, "server_error")
    assert line["error"]["message"].count("HTTP 500") == 3


async def test_lost_replicas_cost_no_row_and_give_none_twice(make: MakeDriver) -> None:
    pool = HttpPool(["a", "b"], faults={"a": [True, False, True], "b": [False, True]})
    driver = await make(pool, min_rows_per_replica=10)
    batch = await driver.ended(await driver.create(*many(100)))
    ids = [line["custom_id"] for line in driver.lines(batch["output_file_id"])]
    assert sorted(ids) == sorted(f"r{i}" for i in range(100))


async def test_the_job_of_a_batch_has_its_responses_as_results_too(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    batch = await driver.ended(await driver.create(*many(3), b"bad"))
    job = driver.jobs.job(batch["id"].replace("_", "-"))
    rows = [json.loads(line) for line in b"".join(stream_results(job, "jsonl")).splitlines()]
    assert sorted(row["status"] for row in rows) == ["invalid", "ok", "ok", "ok"]
    header, *lines = b"".join(stream_results(job, "csv")).decode().splitlines()
    assert '"status_code","request_id","body"' in header
    assert sum('""content"":""TEXT' in line for line in lines) == 3


async def test_a_population_may_have_an_endpoint_and_rows_of_its_own(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    job_id = await driver.jobs.submit(JobSpec(endpoint=CHAT, rows=tuple(many(5))))
    while driver.jobs.running():
        await asyncio.sleep(0.01)
    assert [(o.value or {})["status_code"] for o in driver.jobs.job(job_id).outcomes()] == [200] * 5


@pytest.mark.parametrize("field", [{"prompt": "x"}, {"labels": ["a"]}, {"max_tokens": 3}, {"seed": 0}])
def test_what_a_body_says_cannot_be_said_of_all_rows_at_once(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"leave out {next(iter(field))}"):
        JobSpec(endpoint=CHAT, rows=tuple(many(1)), **field)
