"""What `/metrics` makes of the answer of a node's agent."""

import asyncio
import http.server
import threading
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.engine.metrics import NodeMetrics, public_metrics
from serve_app.errors import ServerUnavailable
from tests.conftest import unused_port

AGENT = """\
# HELP ray_node_mem_used Memory
# TYPE ray_node_mem_used gauge
ray_node_mem_used{ip="10.0.0.1"} 3.0
# HELP ray_vllm_num_requests_running Number of requests in model execution batches.
# TYPE ray_vllm_num_requests_running gauge
ray_vllm_num_requests_running{NodeAddress="10.0.0.1",ReplicaId="a",Version="2.60.0",engine="0",model_name="m",\
otel_scope_name="x",otel_scope_version=""} 2.0
ray_vllm_num_requests_running{ReplicaId="b",engine="0",model_name="m"} 5.0
# HELP ray_vllm_prompt_tokens_total Number of prefill tokens processed.
# TYPE ray_vllm_prompt_tokens_total counter
ray_vllm_prompt_tokens_total{ReplicaId="a",engine="0",model_name="m"} 7.0
# HELP ray_vllm_time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE ray_vllm_time_to_first_token_seconds histogram
ray_vllm_time_to_first_token_seconds_bucket{ReplicaId="a",le="0.1"} 1.0
ray_vllm_time_to_first_token_seconds_bucket{ReplicaId="a",le="+Inf"} 2.0
ray_vllm_time_to_first_token_seconds_count{ReplicaId="a"} 2.0
ray_vllm_time_to_first_token_seconds_sum{ReplicaId="a"} 0.4
# HELP ray_serve_num_http_requests_total The number of HTTP requests processed, ray_vllm_ in words.
# TYPE ray_serve_num_http_requests_total counter
ray_serve_num_http_requests_total{route="/v1/models"} 4.0
# HELP ray_serve_app_prompts_total Prompts of population chunks, by outcome.
# TYPE ray_serve_app_prompts_total counter
ray_serve_app_prompts_total{replica="a",status="ok"} 64.0
# HELP ray_tasks Tasks
# TYPE ray_tasks gauge
ray_tasks{Name="ray_vllm_task"} 1.0
"""


@pytest.fixture
def agent() -> Iterator[str]:
    class Agent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(AGENT.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def test_metrics_of_every_replica_get_the_names_of_vllm_serve_and_those_of_ray_stay_out() -> None:
    families = {family.name: family for family in text_string_to_metric_families(public_metrics(AGENT))}
    assert sorted(families) == [
        "ray_serve_num_http_requests",
        "serve_app_prompts",
        "vllm:num_requests_running",
        "vllm:prompt_tokens",
        "vllm:time_to_first_token_seconds",
    ]
    running = {sample.labels["ReplicaId"]: sample.value for sample in families["vllm:num_requests_running"].samples}
    assert running == {"a": 2.0, "b": 5.0}


def test_families_keep_their_type_and_histograms_their_buckets() -> None:
    families = {family.name: family for family in text_string_to_metric_families(public_metrics(AGENT))}
    assert families["vllm:prompt_tokens"].type == "counter"
    ttft = families["vllm:time_to_first_token_seconds"]
    assert ttft.type == "histogram"
    assert [(s.labels["le"], s.value) for s in ttft.samples if s.name.endswith("_bucket")] == [("0.1", 1), ("+Inf", 2)]


def test_what_is_the_same_in_every_line_and_the_nodes_address_stay_out() -> None:
    assert 'vllm:num_requests_running{ReplicaId="a",engine="0",model_name="m",} 2.0\n' in public_metrics(AGENT)
    tricky = 'ray_vllm_x{EngineVersion="1",Version="a\\"},b",model_name="Version=\\"2\\",",le="1"} 1.0\n'
    assert public_metrics(tricky) == 'vllm:x{EngineVersion="1",model_name="Version=\\"2\\",",le="1"} 1.0\n'


async def test_the_agent_is_looked_for_once_and_again_after_it_did_not_answer(agent: str) -> None:
    found: list[str] = []
    urls = [f"http://127.0.0.1:{unused_port()}/metrics", agent]

    async def find() -> str:
        found.append(urls[len(found)])
        return found[-1]

    metrics = NodeMetrics(find)
    with pytest.raises(ServerUnavailable, match="does not answer at http"):
        await metrics.scrape()
    texts = [await metrics.scrape() for _ in range(3)]
    assert texts == [public_metrics(AGENT)] * 3
    assert len(found) == 2


async def test_scrapes_do_not_stop_the_event_loop(agent: str) -> None:
    async def find() -> str:
        await asyncio.sleep(0)
        return agent

    assert len(set(await asyncio.gather(*(NodeMetrics(find).scrape() for _ in range(8))))) == 1
