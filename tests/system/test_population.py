"""Jobs on a real Ray Serve cluster with simulated replicas that scales to zero, by the command line and by HTTP; and on
an external provider, which the tests play."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from serve_app.client.populations import PopulationClient
from serve_app.serving.launch.local import local_server, marked_processes
from serve_app.spec import JobSpec, JobStatus, Message
from serve_app.workloads.ctr.asking.frames import NO, YES
from tests.conftest import served, unused_port

pytestmark = pytest.mark.timeout(300)
CHAT = "/v1/chat/completions"
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


# The external provider that the tests play: a job may be sent to this machine only where its operator says so.
PROVIDER = f"http://127.0.0.1:{unused_port()}"


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


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    folder = tmp_path_factory.mktemp("simulated")
    CONFIG["http_options"]["port"] = unused_port()
    driver = CONFIG["applications"][1]["args"]
    driver |= {"store": str(folder / "runs"), "source_folders": [str(folder)], "provider_urls": [PROVIDER]}
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    with local_server(folder / "config.yaml", log=folder / "serve.log", on_wait=print) as server:
        yield Simulated(server.settings.base_url, folder, server.marker)


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


def test_a_file_goes_in_by_the_command_line_and_results_come_out_as_the_cluster_grows_from_zero(
    simulated: Simulated,
) -> None:
    assert replicas(simulated) == 0
    path = people(simulated.folder / "people.csv", 1000)
    out = simulated.cli("submit", path, "--user", "Who is {name}?", "--labels", "Yes,No", "--job-id", "a", "--watch",
                        "--price", "2", "--json")  # fmt: skip
    status = JobStatus.model_validate_json(out)
    assert (status.state, status.ok, status.simulated) == ("completed", 1000, True)
    assert (status.cost or 0) > 0
    table = simulated.folder / "a.parquet"
    simulated.cli("results", "a", "--format", "parquet", "--out", str(table))
    ids = pq.read_table(table)["custom_id"].to_pylist()
    assert len(ids) == 1000
    assert set(ids) == {f"p{i}" for i in range(1000)}
    assert simulated.cli("results", "a", "--format", "csv").count("\n") == 1001
    assert "SIMULATED" in simulated.cli("status", "a")
    assert [job["id"] for job in json.loads(simulated.cli("list", "--json"))] == ["a"]


def test_the_same_questions_under_reuse_ask_no_replica(simulated: Simulated) -> None:
    path = str(simulated.folder / "people.csv")
    out = simulated.cli("submit", path, "--user", "Who is {name}?", "--labels", "Yes,No", "--reuse", "--job-id", "b",
                        "--watch", "--json")  # fmt: skip
    status = JobStatus.model_validate_json(out)
    assert (status.ok, status.reused, status.prompt_tokens) == (1000, 1000, 0)
    simulated.cli("delete", "b")
    with pytest.raises(AssertionError, match="no job 'b'"):
        simulated.cli("status", "b")


def test_a_wrong_template_is_refused_with_the_nearest_column(simulated: Simulated) -> None:
    with pytest.raises(AssertionError, match="name"):
        simulated.cli("submit", str(simulated.folder / "people.csv"), "--user", "Who is {nmae}?")


def test_events_stream_through_the_proxy_until_the_end(simulated: Simulated) -> None:
    client = PopulationClient(simulated.base_url)
    job_id = client.upload(JobSpec(source=str(simulated.folder / "people.csv"), prompt="{name}", job_id="events"))
    kinds = []
    with httpx.stream("GET", f"{simulated.base_url}/v1/populations/{job_id}/events", timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("event:"):
                kinds.append(line)
    assert kinds[0] == "event: status"
    assert kinds[-1] == "event: end"
    assert client.status(job_id).state == "completed"


def submit_uneven(simulated: Simulated, job_id: str) -> PopulationClient:
    """5 rows of one token and 20 of ten seconds, in one chunk; returns when the 5 are committed."""
    path = simulated.folder / f"{job_id}.jsonl"
    short, long = {"max_tokens": 1}, {"max_tokens": 3000, "structured_outputs": {"choice": ["x" * 8000]}}
    asked = {"model": "sim", "messages": [{"role": "user", "content": "Hi"}]}
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": asked | (long if i % 5 else short)}
        for i in range(25)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    client = PopulationClient(simulated.base_url)
    client.submit(JobSpec(source=str(path), endpoint=CHAT, job_id=job_id))
    wait_until(lambda: client.status(job_id).ok == 5, 60)
    return client


def test_short_rows_are_committed_before_the_long_ones_of_their_chunk_and_stay_after_a_cancel(
    simulated: Simulated,
) -> None:
    client = submit_uneven(simulated, "uneven")
    client.cancel("uneven")
    status = client.wait("uneven")
    assert (status.state, status.done, status.total) == ("cancelled", 5, 25)
    assert sorted(outcome.custom_id for outcome in client.outcomes("uneven")) == ["r0", "r10", "r15", "r20", "r5"]


@pytest.mark.chaos
def test_a_killed_replica_repeats_only_the_rows_that_had_not_come_back(simulated: Simulated) -> None:
    client = submit_uneven(simulated, "killed")
    for pid in simulated.processes("replicas:Replica"):
        os.kill(pid, signal.SIGKILL)
    assert client.wait("killed").state == "completed"
    attempts = {outcome.custom_id: outcome.attempts for outcome in client.outcomes("killed")}
    assert attempts == {f"r{i}": 2 if i % 5 else 1 for i in range(25)}


@pytest.mark.chaos
def test_a_killed_driver_and_a_killed_runner_are_replaced_and_the_job_goes_on_by_itself(simulated: Simulated) -> None:
    client = PopulationClient(simulated.base_url)
    path = people(simulated.folder / "many.csv", 12_000)
    asked = (Message(role="user", content="Who is {name}?"),)
    job_id = client.submit(JobSpec(source=path, messages=asked, labels=("Yes", "No")))
    wait_until(lambda: client.status(job_id).ok > 500, 60)
    runners = simulated.processes("ray::Runner")
    assert len(runners) == 2
    os.kill(runners[0], signal.SIGKILL)
    wait_until(lambda: len(set(simulated.processes("ray::Runner")) - set(runners)) == 1, 60)
    os.kill(simulated.processes("populations:Driver")[0], signal.SIGKILL)
    status = client.wait(job_id)
    assert (status.state, status.ok) == ("completed", 12_000)
    found = [outcome.custom_id for outcome in client.outcomes(job_id)]
    assert sorted(found) == sorted(f"p{i}" for i in range(12_000))
    assert (
        json.loads((simulated.folder / "runs" / job_id / "parts" / "0000" / "manifest.json").read_text())["epoch"] > 1
    )


def test_the_cluster_goes_back_to_zero_and_the_control_routes_still_answer(simulated: Simulated) -> None:
    wait_until(lambda: not simulated.processes("replicas:Replica"), 90)
    assert len(json.loads(simulated.cli("list", "--json"))) >= 2


@contextmanager
def provider(chat: Callable[[dict[str, Any]], Any]) -> Iterator[str]:
    """The address of an OpenAI-compatible endpoint that answers a request's body with `chat` of it."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> Any:
        return chat(await request.json())

    with served(app, port=int(PROVIDER.rpartition(":")[2])) as url:
        yield f"{url}/v1"


def answered(text: str, **choice: Any) -> dict[str, Any]:
    """A chat completion."""
    found = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    return {"choices": [found], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}


def test_the_same_job_runs_on_an_external_provider(simulated: Simulated) -> None:
    path = people(simulated.folder / "few.csv", 20)
    with provider(lambda body: answered(body["messages"][-1]["content"].upper())) as url:
        out = simulated.cli("submit", path, "--user", "Who is {name}?", "--watch", "--json", "--provider", url,
                            "--model", "other")  # fmt: skip
    status = JobStatus.model_validate_json(out)
    assert (status.state, status.ok, status.simulated, status.cost) == ("completed", 20, False, None)
    assert status.model == "other"
    texts = {o.custom_id: (o.value or {})["text"] for o in PopulationClient(simulated.base_url).outcomes(status.id)}
    assert texts["p7"] == "WHO IS PERSON 7?"


def test_click_through_is_asked_of_a_provider_by_the_same_prompts_and_its_refusals_are_waited_out(
    simulated: Simulated,
) -> None:
    asked: list[str] = []

    def chat(body: dict[str, Any]) -> Any:
        asked.append(body["messages"][-1]["content"])
        if len(asked) <= 3:
            return JSONResponse({"error": {"message": "too many"}}, 429, {"retry-after": "1"})
        yes = 0.75 if "female" in asked[-1].lower() else 0.25
        shown = [{"token": token, "logprob": math.log(p)} for token, p in ((YES, yes), (NO, 1 - yes))]
        return answered(YES, logprobs={"content": [{"token": YES, "logprob": math.log(yes), "top_logprobs": shown}]})

    with provider(chat) as url:
        out = simulated.cli("--ad", "New phone", "--population-size", "60", "--provider", url, "--model", "other",
                            "--json", "--out", "ctr", group="ctr")  # fmt: skip
    line = json.loads(out)
    assert (line["ok"], line["failed"]) == (60, 0)
    assert "simulated" not in line
    (report,) = (simulated.folder / "ctr").glob("*/report.json")
    assert json.loads(report.read_text())["model"] == "other"
    # The driver's own prompts reach the provider: as many persons, and the share of women that was answered for.
    prompts = set(asked)
    women = sum("female" in prompt.lower() for prompt in prompts)
    assert 0 < women < len(prompts) == 60
    assert line["ctr"] == pytest.approx((0.75 * women + 0.25 * (60 - women)) / 60, abs=1e-4)


def test_ads_are_compared_and_calibrated_on_the_same_people(simulated: Simulated) -> None:
    out = simulated.cli("compare", "--ad", "New phone", "--ad", "Cheap flights", "--population-size", "48", "--json",
                        group="ctr")  # fmt: skip
    line = json.loads(out)
    assert (line["rows"], line["dropped"], set(line["ctr"])) == (48, 0, {"A", "B"})
    assert sum(line["best_probability"].values()) == pytest.approx(1)
    assert line["simulated"] is True
    assert "simulated" in (simulated.folder / "runs" / line["id"] / "report.html").read_text().lower()
    listed = json.loads(simulated.cli("list", "--json"))
    assert sum(job["metadata"].get("group") == line["id"] for job in listed) == 2
    assert line["id"] in simulated.cli("list")
    history = "ad,platform,impressions,clicks\n" + "".join(f"Ad {i},facebook,10000,{100 + 10 * i}\n" for i in range(3))
    (simulated.folder / "ads.csv").write_text(history)
    line = json.loads(simulated.cli("calibrate", "--ads", "ads.csv", "--population-size", "32", "--json", group="ctr"))
    assert line["ads"] == 3
    out = simulated.cli("--ad", "New phone", "--population-size", "48", "--calibration", "calibration.json", "--json",
                        "--out", "calibrated", group="ctr")  # fmt: skip
    line = json.loads(out)
    assert line["simulated"] is True
    assert line["ctr"] < 0.02 < line["ctr_raw"]
    (report,) = (simulated.folder / "calibrated").glob("*/report.json")
    # Three ads were clicked at by 1.0 to 1.2 %, and so is a fourth, however the replicas answer.
    assert 0.005 < json.loads(report.read_text())["calibrated"]["ctr"] < 0.02
