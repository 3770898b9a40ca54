"""Online traffic on real vLLM, two replicas at TP=2: keys, sessions, adapters, traces, clients that leave or do not
read, and a changed config that is deployed under load. Counts are printed (`-s`).

The tests share one cluster and run in the order of this file; the deploy comes last.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI

from serve_app.client.populations import PopulationClient
from serve_app.schema import Row
from serve_app.serving.gate.key_file import create_key
from serve_app.serving.gate.limits import SLOT_S, WINDOW_S
from serve_app.serving.launch.local import local_serve
from serve_app.spec import JobSpec
from tests.collector import Collector, collect
from tests.conftest import own_document
from tests.system.kit import compare_prompt_tokens, dashboard, wait_for
from tests.system.lora import write_adapter

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(1200)]
MODEL, ADAPTER = "smollm2-135m-instruct", "random-adapter"
HELLO = [{"role": "user", "content": "Tell me a story."}]
# Not the model's own: only what the engine's options say leads to it.
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }} ({{ mood }}): {{ m.content }}\n{% endfor %}assistant:"
LIMIT = 6
STREAM_TOKENS = 48


@dataclass
class Online:
    base_url: str
    dashboard: str
    folder: Path
    document: dict[str, Any]
    keys: dict[str, str]
    collector: Collector

    def client(self, key: str = "free") -> OpenAI:
        return OpenAI(base_url=f"{self.base_url}/v1", api_key=self.keys[key], max_retries=0, timeout=300)

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Process and content of the log lines of the replicas' requests."""
        for text in (self.folder / "serve.log").read_text().splitlines():
            replica, found, rest = text.partition(' {"time":')
            if found and "replicas:Replica pid=" in replica:
                yield replica.partition("pid=")[2].split(")")[0], json.loads('{"time":' + rest)

    def open_requests(self) -> float:
        """What vLLM counts as running or waiting, over both engines."""
        text = httpx.get(f"{self.base_url}/metrics", headers=self.bearer("free"), timeout=60).text
        lines = [line for line in text.splitlines() if re.match(r"vllm:num_requests_(running|waiting)[{ ]", line)]
        assert lines, text[:2000]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def bearer(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[key]}"}


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Online]:
    folder = tmp_path_factory.mktemp("online")
    file = folder / "keys.yaml"
    keys = {
        "free": create_key(file, "free"),
        "limited": create_key(file, "limited", requests_per_minute=LIMIT),
        "operator": create_key(file, "operator", scopes=["populations"]),
    }
    document = own_document(folder)
    document["applications"] = document["applications"][:2]
    replicas = document["applications"][0]["args"]
    adapter = {"name": ADAPTER, "path": str(write_adapter(folder / "adapter"))}
    replicas["engine"] |= {"enable_lora": True, "max_lora_rank": 8, "lora_modules": [adapter]}
    replicas["engine"] |= {"chat_template": TEMPLATE, "default_chat_template_kwargs": {"mood": "merry"}}
    replicas["access"] = {"key_files": [str(file)], "write_timeout_s": 5}
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    with collect() as collector:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "RAY_DEDUP_LOGS": "0",
        }
        with local_serve(folder / "config.yaml", log=folder / "serve.log", on_wait=print, env=env) as base_url:
            yield Online(base_url, dashboard(folder / "serve.log"), folder, document, keys, collector)


# --- keys ---


def test_without_a_key_and_with_one_for_something_else_nothing_is_generated(online: Online) -> None:
    url, body = f"{online.base_url}/v1/chat/completions", {"model": MODEL, "messages": HELLO, "max_tokens": 1}
    assert httpx.post(url, json=body).status_code == 401
    assert httpx.post(url, json=body, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert httpx.post(url, json=body, headers=online.bearer("operator")).status_code == 403
    assert httpx.get(f"{online.base_url}/health").status_code == 200


def test_a_keys_limit_holds_over_both_replicas(online: Online) -> None:
    client = online.client("limited")
    statuses: Counter[int] = Counter()
    waits = []
    for number in range(3 * LIMIT):
        try:
            client.with_options(default_headers={"x-request-id": f"limited-{number}"}).completions.create(
                model=MODEL, prompt="Hi", max_tokens=1
            )
            statuses[200] += 1
        except openai.RateLimitError as error:
            statuses[429] += 1
            waits.append(int(error.response.headers["retry-after"]))
    wait_for("all log lines", lambda: sum(line["id"].startswith("limited-") for _, line in online.lines()) >= 18, 30)
    replicas = {pid for pid, line in online.lines() if line["id"].startswith("limited-")}
    print(f"limit of {LIMIT} a minute over {len(replicas)} replicas: {dict(statuses)}")
    assert len(replicas) == 2
    assert waits
    assert 1 <= min(waits) <= max(waits) <= WINDOW_S + SLOT_S
    # A token comes back every ten seconds, and eighteen requests take no minute.
    assert LIMIT <= statuses[200] <= LIMIT + 3


# --- prompts ---


def test_a_populations_prompts_are_an_online_clients_by_the_engines_own_template_too(online: Online) -> None:
    compare_prompt_tokens(online.base_url, MODEL, online.bearer("free"))
    (replica,) = PopulationClient(online.base_url).replicas()[:1]
    assert replica.engine.prompts.chat_template_kwargs == {"mood": "merry"}


# --- routing ---


def test_the_turns_of_a_session_meet_one_replica_and_sessions_spread_over_both(online: Online) -> None:
    client = online.client()
    for session in range(8):
        for turn in range(3):
            headers = {"x-session-id": f"s{session}", "x-request-id": f"session-{session}-{turn}"}
            client.with_options(default_headers=headers).completions.create(model=MODEL, prompt="Hi", max_tokens=1)
    found: dict[str, set[str]] = {}

    def complete() -> bool:
        found.clear()
        lines = [(pid, line) for pid, line in online.lines() if line["id"].startswith("session-")]
        for pid, line in lines:
            found.setdefault(line["id"].split("-")[1], set()).add(pid)
        return len(lines) == 24

    wait_for("24 log lines", complete, 30)
    print(f"replicas by session: {found}")
    assert [len(replicas) for replicas in found.values()] == [1] * 8
    assert len(set.union(*found.values())) == 2


# --- adapters ---


def test_an_adapter_is_listed_and_answers_otherwise_than_its_model(online: Online) -> None:
    client = online.client()
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {MODEL, ADAPTER}
    assert client.models.retrieve(ADAPTER).id == ADAPTER
    texts = {}
    for name in listed:
        answer = client.chat.completions.create(model=name, messages=HELLO, max_tokens=12, temperature=0)
        assert answer.model == name
        texts[name] = answer.choices[0].message.content
    print(texts)
    assert texts[MODEL] != texts[ADAPTER]


# --- traces ---


def test_a_request_is_one_trace_from_the_clients_span_to_the_engines(online: Online) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    online.client().chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=2,
        extra_headers=headers,
    )
    wait_for("two spans", lambda: len(online.collector.trace(trace)) >= 2, 30)
    spans = {span.name: span for span in online.collector.trace(trace)}
    print({name: span.parent_span_id.hex() for name, span in spans.items()})
    (server,) = (span for name, span in spans.items() if "/v1/chat/completions" in name)
    assert server.parent_span_id.hex() == parent
    assert spans["llm_request"].parent_span_id == server.span_id


def test_rows_of_a_population_begin_no_traces(online: Online) -> None:
    client = PopulationClient(online.base_url)
    before = len(online.collector.spans)
    rows = [Row(f"r{i}", ({"role": "user", "content": "Hi"},)) for i in range(40)]
    job_id = client.submit(JobSpec.of(rows, labels=["Yes", "No"]))
    wait_for("the job's end", lambda: client.status(job_id).state == "completed", 120)
    time.sleep(3)  # spans are sent twice a second
    assert [span.name for span in online.collector.spans[before:] if span.name == "llm_request"] == []


# --- clients that leave or do not read ---


async def leave(client: AsyncOpenAI, after_tokens: int) -> int:
    """Begin a stream that would take minutes and hang up; tokens read."""
    stream = await client.completions.create(
        model=MODEL, prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    read = 0
    async with stream:
        async for _ in stream:
            read += 1
            if read >= after_tokens:
                break
    return read


async def test_generation_ends_when_clients_leave(online: Online) -> None:
    count = 24
    async with AsyncOpenAI(
        base_url=f"{online.base_url}/v1", api_key=online.keys["free"], max_retries=0, timeout=300
    ) as client:
        read = await asyncio.gather(*(leave(client, 1 + number % 5) for number in range(count)))
    took_s = await asyncio.to_thread(wait_for, "the engines have no request", lambda: online.open_requests() == 0, 60)
    print(f"{count} streams of 3,000 tokens left after {sum(read)} tokens; the engines were idle {took_s:.1f} s later")


def test_a_client_that_does_not_read_is_dropped_and_others_are_served(online: Online) -> None:
    host, port = "127.0.0.1", int(online.base_url.rsplit(":", 1)[1])
    body = json.dumps(
        {"model": MODEL, "prompt": "Once", "max_tokens": 3000, "stream": True, "ignore_eos": True, "n": 8}
    )
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\nauthorization: Bearer {online.keys['free']}\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, port))
        slow.sendall((head + body).encode())
        wait_for("it generates", lambda: online.open_requests() > 0, 30)
        started = time.monotonic()
        for _ in range(4):
            online.client().completions.create(model=MODEL, prompt="Hi", max_tokens=4)
        print(f"4 requests beside a client that does not read: {time.monotonic() - started:.1f} s")
    took_s = wait_for("it generates no more", lambda: online.open_requests() == 0, 60)
    print(f"the engine was idle {took_s:.1f} s after the slow client was gone")


# --- a changed config under load ---


@dataclass
class Traffic:
    """Streams and short requests by one client after the other, until told to stop."""

    online: Online
    stopped: bool = False

    async def run(self, streams: int, shorts: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        async with AsyncOpenAI(
            base_url=f"{self.online.base_url}/v1", api_key=self.online.keys["free"], max_retries=0, timeout=300
        ) as client:
            workers = [self._again(client, counts, self._stream, "streams") for _ in range(streams)]
            workers += [self._again(client, counts, self._short, "short") for _ in range(shorts)]
            await asyncio.gather(*workers)
        return counts

    async def _again(self, client: AsyncOpenAI, counts: Counter[str], ask: Any, kind: str) -> None:
        while not self.stopped:
            try:
                whole = await ask(client)
                counts[kind if whole else f"{kind} cut"] += 1
            except openai.APIError as error:
                counts[f"{kind} refused: {type(error).__name__}"] += 1
                await asyncio.sleep(0.5)

    async def _stream(self, client: AsyncOpenAI) -> bool:
        stream = await client.completions.create(
            model=MODEL, prompt="Once", max_tokens=STREAM_TOKENS, stream=True, extra_body={"ignore_eos": True}
        )
        reasons = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]
        return bool(reasons) and reasons[-1] == "length"

    async def _short(self, client: AsyncOpenAI) -> bool:
        answer = await client.completions.create(model=MODEL, prompt="Hi", max_tokens=1)
        return bool(answer.choices[0].finish_reason == "length")


async def test_a_changed_config_is_deployed_under_load_without_a_request_dropped(online: Online) -> None:
    client = PopulationClient(online.base_url)
    before = {replica.replica_id for replica in client.replicas()}
    engine = online.document["applications"][0]["args"]["engine"]
    engine["max_num_seqs"] = 96
    path = online.folder / "changed.yaml"
    path.write_text(yaml.safe_dump(online.document))
    traffic = Traffic(online)
    running = asyncio.create_task(traffic.run(streams=4, shorts=2))
    await asyncio.sleep(5)
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(path), "--address", online.dashboard]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True, timeout=60)

    def replaced() -> bool:
        now = {replica.replica_id for replica in client.replicas()}
        return len(now) == 2 and not now & before

    took_s = await asyncio.to_thread(wait_for, "both replicas are new", replaced, 600)
    await asyncio.sleep(5)
    traffic.stopped = True
    counts = await running
    print(f"deployed in {took_s:.0f} s: {dict(counts)}")
    assert set(counts) == {"streams", "short"}
