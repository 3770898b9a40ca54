"""Files and batches on a real Ray Serve cluster with simulated replicas, by the stock OpenAI client."""

import copy
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import yaml
from openai import OpenAI

from serve_app.serving.launch.local import local_server
from tests.conftest import unused_port
from tests.system.kit import CONFIG as POPULATIONS
from tests.system.kit import Simulated, replicas, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    folder = tmp_path_factory.mktemp("batches")
    config = copy.deepcopy(POPULATIONS)
    config["http_options"]["port"] = unused_port()
    driver = {"store": str(folder / "runs"), "chunk_rows": 16, "window_rows": 32, "max_window_rows": 32}
    config["applications"][1]["args"] = driver
    for name, deployment in (("files", "Files"), ("batches", "Batches")):
        config["applications"].append(
            {
                "name": name,
                "route_prefix": f"/v1/{name}",
                "import_path": f"serve_app.serving.apps:{name}",
                "args": driver if name == "files" else {},
                "deployments": [{"name": deployment}],
            }
        )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with local_server(folder / "config.yaml", log=folder / "serve.log", on_wait=print) as server:
        yield Simulated(server.settings.base_url, folder, server.marker)


@pytest.fixture(scope="module")
def client(simulated: Simulated) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{simulated.base_url}/v1", api_key="none", max_retries=5) as client:
        wait_until(lambda: answers(client), 60)
        yield client


def answers(client: OpenAI) -> bool:
    try:
        return not client.files.list().data and not client.batches.list().data
    except openai.APIStatusError:  # its application is not up yet
        return False


def ask(custom_id: str, text: str = "hi", **body: Any) -> dict[str, Any]:
    asked = {"model": "sim", "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked}


def upload(client: OpenAI, lines: list[Any]) -> str:
    content = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    return str(client.files.create(file=("in.jsonl", io.BytesIO(content.encode())), purpose="batch").id)


def create(client: OpenAI, lines: list[Any], **fields: Any) -> Any:
    return client.batches.create(input_file_id=upload(client, lines), endpoint=CHAT, completion_window="24h", **fields)


def ended(client: OpenAI, batch_id: str) -> Any:
    while (batch := client.batches.retrieve(batch_id)).status not in ENDED:
        time.sleep(0.2)
    return batch


def lines_of(client: OpenAI, file_id: str) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in client.files.content(file_id).read().splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def test_a_batch_runs_on_a_cluster_that_grows_from_zero_and_its_files_hold_every_row(
    simulated: Simulated, client: OpenAI
) -> None:
    assert replicas(simulated) == 0
    lines = [ask(f"r{i}", f"text {i}", seed=i) for i in range(500)]
    bad = ["{not json", ask("model", model="gpt-6"), ask("stream", stream=True), ask("r0")]
    batch = create(client, [*lines, *bad], metadata={"mine": "1"})
    assert batch.status in ("validating", "in_progress")
    assert batch.expires_at == batch.created_at + 86_400
    batch = ended(client, batch.id)
    assert (batch.status, batch.metadata, batch.model) == ("completed", {"mine": "1"}, "sim")
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (504, 500, 4)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    answered = lines_of(client, batch.output_file_id)
    assert set(answered) == {f"r{i}" for i in range(500)}
    assert all(line["response"]["status_code"] == 200 for line in answered.values())
    bodies = [line["response"]["body"] for line in answered.values()]
    assert len({body["choices"][0]["message"]["content"] for body in bodies}) == 500
    assert batch.usage.output_tokens == sum(body["usage"]["completion_tokens"] for body in bodies)
    errors = lines_of(client, batch.error_file_id)
    assert {name: (line["response"] or {}).get("status_code") for name, line in errors.items()} == {
        None: None, "model": 404, "stream": 400, "r0": None,
    }  # fmt: skip


def test_files_are_uploaded_listed_read_and_deleted(client: OpenAI) -> None:
    content = os.urandom(64 << 20)  # more than fits into any one message on the way
    expires = {"anchor": "created_at", "seconds": 7200}
    stored = client.files.create(file=("big é.bin", io.BytesIO(content)), purpose="user_data", expires_after=expires)
    assert (stored.filename, stored.bytes, stored.expires_at) == ("big é.bin", len(content), stored.created_at + 7200)
    assert client.files.retrieve(stored.id) == stored
    assert client.files.content(stored.id).read() == content
    assert [file.id for file in client.files.list(purpose="user_data", limit=1)] == [stored.id]
    assert client.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(stored.id)
    with pytest.raises(openai.BadRequestError, match="input_file_id"):
        client.batches.create(input_file_id=stored.id, endpoint=CHAT, completion_window="24h")


def test_a_cancelled_batch_gives_what_is_done_and_a_list_goes_through_all(client: OpenAI) -> None:
    batch = create(client, [ask(f"r{i}", f"text {i}" * 200) for i in range(3000)])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 50, 90)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    answered, lost = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert answered.keys() | lost.keys() == {f"r{i}" for i in range(3000)}
    assert {line["error"]["code"] for line in lost.values()} == {"batch_cancelled"}
    failed = ended(client, create(client, ["no request"]).id)
    assert (failed.status, failed.errors.data[0].code) == ("failed", "invalid_json_line")
    listed = [one.id for one in client.batches.list(limit=1)]
    assert listed[:2] == [failed.id, batch.id]


@pytest.mark.chaos
def test_a_batch_goes_on_by_itself_after_its_driver_was_killed_and_no_row_is_twice(
    simulated: Simulated, client: OpenAI
) -> None:
    batch = create(client, [ask(f"r{i}", f"again {i}" * 100) for i in range(2000)])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 100, 90)
    os.kill(simulated.processes("populations:Driver")[0], signal.SIGKILL)
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("completed", 2000, None)
    assert lines_of(client, batch.output_file_id).keys() == {f"r{i}" for i in range(2000)}
    manifest = simulated.folder / "runs" / batch.id.replace("_", "-") / "parts" / "0000" / "manifest.json"
    assert json.loads(manifest.read_text())["epoch"] > 1
