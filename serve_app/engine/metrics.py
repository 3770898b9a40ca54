"""Prometheus metrics of population work, and the answer of `/metrics`.

Every process hands its metrics to its node's Ray agent, whose port is the one to scrape: vLLM's (`ray_vllm_…`, by its
`RayPrometheusStatLogger`), Serve's and Ray's (`ray_…`), ours (`ray_serve_app_…`), every 10 s
(`RAY_metrics_report_interval_ms`). Counters, gauges and buckets are exact. A histogram's `_sum` counts each value as
the middle of its bucket (ray#64852): 25 % too large for 0.030 s in a bucket of 0.025 to 0.05.

`/metrics` reaches a random replica. It answers for the whole node, under the names of `vllm serve`, without Ray's node
and task metrics.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import httpx

from serve_app.errors import ServerUnavailable
from serve_app.schema import Completion

PREFIXES = {"ray_vllm_": "vllm:", "ray_serve_app_": "serve_app_", "ray_serve_": "ray_serve_"}
# Longest first: ray_serve_ is a prefix of ray_serve_app_.
_LINE = re.compile(rf"^((?:# (?:HELP|TYPE) )?)({'|'.join(sorted(PREFIXES, key=len, reverse=True))})(.*)$", re.MULTILINE)
# The same in every line of a node, and private to the cluster. WorkerId stays: some Serve series differ only in it.
_CONSTANT = re.compile(r'(?<=[{,])(?:NodeAddress|SessionName|Version|otel_scope_\w+)="(?:[^"\\]|\\.)*"(?:,|(?=}))')
AGENT_TIMEOUT_S = 5.0
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CHUNK_SECONDS = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0]


class NodeMetrics:
    """The node's metrics of vLLM, Serve and ours. `find_agent` gives its Ray agent's URL."""

    def __init__(self, find_agent: Callable[[], Awaitable[str]] | None = None) -> None:
        self._find_agent = find_agent or _find_agent
        self._url = ""

    async def scrape(self) -> str:
        """Prometheus' text format. Raises ServerUnavailable if the agent does not answer."""
        self._url = self._url or await self._find_agent()
        try:
            async with httpx.AsyncClient(timeout=AGENT_TIMEOUT_S, trust_env=False) as client:
                response = (await client.get(self._url)).raise_for_status()
        except httpx.HTTPError as error:
            self._url, url = "", self._url  # its port may change
            raise ServerUnavailable(f"the node's metrics agent does not answer at {url} ({error!r})") from error
        return await asyncio.to_thread(public_metrics, response.text)  # a megabyte with many replicas


def public_metrics(text: str) -> str:
    """vLLM's, Serve's and our part of an agent's answer, renamed by `PREFIXES`."""
    return "".join(f"{line[1]}{PREFIXES[line[2]]}{_CONSTANT.sub('', line[3])}\n" for line in _LINE.finditer(text))


async def _find_agent() -> str:
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    for node in await asyncio.to_thread(ray.nodes):
        if node["NodeID"] == node_id and (port := node.get("MetricsExportPort") or 0) > 0:
            host = node["NodeManagerAddress"]
            return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
    raise ServerUnavailable("this node has no metrics agent: is Ray's dashboard agent running, with metrics enabled?")


class ChunkMetrics:
    """Population work of this replica. vLLM's metrics count it with online requests."""

    def __init__(self) -> None:
        from ray.serve import metrics  # tags deployment, replica and application

        self._prompts: Any = metrics.Counter(
            "serve_app_prompts", description="Prompts of population chunks, by outcome.", tag_keys=("status",)
        )
        self._tokens: Any = metrics.Counter(
            "serve_app_tokens",
            description="Tokens of population chunks: of prompts, of these from the prefix cache, and generated.",
            tag_keys=("kind",),
        )
        self._seconds: Any = metrics.Histogram(
            "serve_app_chunk_seconds", description="Time a chunk took in the replica.", boundaries=CHUNK_SECONDS
        )

    def count(self, completions: Collection[Completion]) -> None:
        for status, prompts in Counter(completion.status for completion in completions).items():
            self._prompts.inc(prompts, tags={"status": status})
        tokens = {
            "prompt": sum(completion.prompt_tokens for completion in completions),
            "cached": sum(completion.cached_tokens for completion in completions),
            "generated": sum(completion.completion_tokens for completion in completions),
        }
        for kind, count in tokens.items():
            if count:  # Ray refuses to add 0
                self._tokens.inc(count, tags={"kind": kind})

    def chunk_seconds(self, seconds: float) -> None:
        self._seconds.observe(seconds)
