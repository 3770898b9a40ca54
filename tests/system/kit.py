"""What tests of real clusters share."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serve_app.client.populations import PopulationClient
from serve_app.dispatch.render import make_renderer
from serve_app.schema import Row, unpack_tokens
from serve_app.serving.launch.local import marked_processes
from serve_app.spec import JobSpec

CHATS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hello"),),
    (("system", "Be brief."), ("user", "Was ist das? Ein Käse 🧀, sagt man.\n\n")),
    (("user", "  one "), ("assistant", "two"), ("user", "three")),
    (("user", "<|im_end|>\n<|im_start|>system\nno"),),
    (("system", ""), ("user", " ")),
)
TEXTS = ("One, two,", " <|im_start|>", "naïve\ttext\n")


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.5)
    return time.monotonic() - started


def dashboard(log: Path) -> str:
    """The URL of Ray's dashboard, as `serve run` logged it."""
    text = log.read_text()
    address = re.search(r"127\.0\.0\.1:\d+", text.partition("dashboard at")[2])
    assert address is not None, text
    return f"http://{address[0]}"


def compare_prompt_tokens(base_url: str, model: str, headers: dict[str, str]) -> None:
    """Assert that rows of a population are the tokens that an online client's requests are."""
    chats = [Row(f"chat-{i}", tuple({"role": r, "content": c} for r, c in chat)) for i, chat in enumerate(CHATS)]
    rows = [*chats, *(Row(f"text-{i}", prompt=text) for i, text in enumerate(TEXTS))]
    client = PopulationClient(base_url)
    job_id = client.submit(JobSpec.of(rows, workload="tokens/v1", max_tokens=1))
    assert client.wait(job_id).state == "completed"
    counted = {outcome.custom_id: outcome.prompt_tokens for outcome in client.outcomes(job_id)}
    rendered = make_renderer(client.replicas()[0].engine).prompts(rows)

    def ask(path: str, **body: Any) -> Any:
        answer = httpx.post(f"{base_url}{path}", json={"model": model, **body}, headers=headers, timeout=120)
        assert answer.is_success, answer.text
        return answer.json()

    for row, prompt in zip(rows, rendered, strict=True):
        text = row.prompt is not None
        asked = {"prompt": row.prompt} if text else {"messages": list(row.messages)}
        tokens = ask("/tokenize", **asked)["tokens"]
        assert isinstance(prompt, bytes)
        assert list(unpack_tokens(prompt)) == tokens, row
        online = ask("/v1/completions" if text else "/v1/chat/completions", max_tokens=1, **asked)
        assert online["usage"]["prompt_tokens"] == counted[row.custom_id] == len(tokens), row


CONFIG: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "http_options": {"host": "127.0.0.1"},
    "applications": [
        {
            "name": "replicas",
            "route_prefix": "/",
            "import_path": "serve_app.serving.apps:replicas",
            "args": {
                "engine": {"served_model_name": "sim", "tensor_parallel_size": 2},
                "simulated": {"step_ms": 5, "prefill_ms_per_token": 0.05},
            },
            "deployments": [
                {
                    "name": "Replica",
                    "ray_actor_options": {"num_cpus": 0},
                    "autoscaling_config": {
                        "min_replicas": 0,
                        "max_replicas": 2,
                        "target_ongoing_requests": 64,
                        "upscale_delay_s": 1,
                        "downscale_delay_s": 4,
                        "policy": {"policy_function": "serve_app.serving.autoscaling:BacklogPolicy"},
                    },
                }
            ],
        },
        {
            "name": "populations",
            "route_prefix": "/v1/populations",
            "import_path": "serve_app.serving.apps:populations",
            "args": {"max_runners": 2, "rows_per_runner": 4000},
            "deployments": [{"name": "Driver"}],
        },
    ],
}


@dataclass(frozen=True)
class Simulated:
    base_url: str
    folder: Path
    marker: str

    def cli(self, *arguments: str, group: str = "population") -> str:
        """What the command prints; raises if it fails."""
        command = [str(Path(sys.executable).with_name("serve-app")), group, *arguments, "--base-url", self.base_url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.folder)
        if done.returncode:
            raise AssertionError(done.stderr)
        return done.stdout

    def processes(self, title: str) -> list[int]:
        """Ray processes of this cluster with that in their titles."""
        return [process.pid for process in marked_processes(self.marker) if title in " ".join(process.cmdline())]


def people(path: Path, count: int) -> str:
    path.write_text("custom_id,name\n" + "".join(f"p{i},Person {i}\n" for i in range(count)))
    return str(path)


def replicas(cluster: Simulated) -> int:
    answer = httpx.get(f"{cluster.base_url}/v1/populations/replicas", timeout=30)
    assert answer.status_code == 200
    return len(answer.json()["data"])


def wait_until(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
