"""Grafana dashboards from tables of panels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 12, 8  # of 24 columns


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` maps legends to PromQL; units are Grafana's names."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    text: str = ""


def quantiles(metric: str) -> dict[str, str]:
    """p50, p95 and p99 of a vLLM histogram. No means: Ray's sums are not exact."""
    by = f"sum by (le) (rate(ray_vllm_{metric}_bucket{{{PICK}}}[$__rate_interval]))"
    return {f"p{q}": f"histogram_quantile(0.{q}, {by})" for q in (50, 95, 99)}


PICK = 'namespace="$namespace", installation="$installation"'
LEFT, ROWS = f"ray_serve_app_population_rows_left{{{PICK}}}", f"serve_app:rows:rate1m{{{PICK}}}"
GPUS = f"serve_app:gpus:allocated{{{PICK}}}"
SERVER = (
    Panel("Time to first token", quantiles("time_to_first_token_seconds"), "s"),
    Panel("Time between tokens", quantiles("inter_token_latency_seconds"), "s"),
    Panel(
        "Requests by status",
        {"{{status}}": f"sum by (status) (rate(ray_serve_app_http_requests_total{{{PICK}}}[$__rate_interval]))"},
        "reqps",
    ),
    Panel(
        "Requests refused, by reason",
        {"{{reason}}": f"sum by (reason) (rate(ray_serve_app_http_refused_total{{{PICK}}}[$__rate_interval]))"},
        "reqps",
    ),
    Panel(
        "Requests in the engines",
        {
            "running {{ReplicaId}}": f"sum by (ReplicaId) (ray_vllm_num_requests_running{{{PICK}}})",
            "waiting {{ReplicaId}}": f"sum by (ReplicaId) (ray_vllm_num_requests_waiting{{{PICK}}})",
        },
    ),
    Panel("KV cache in use", {"{{ReplicaId}}": f"serve_app:kv_cache:max{{{PICK}}}"}, "percentunit"),
    Panel("Prompt tokens from the prefix cache", {"share": f"serve_app:prefix_hits:ratio5m{{{PICK}}}"}, "percentunit"),
    Panel(
        "Tokens",
        {
            "prompt": f"sum(rate(ray_vllm_prompt_tokens_total{{{PICK}}}[$__rate_interval]))",
            "generated": f"sum(rate(ray_vllm_generation_tokens_total{{{PICK}}}[$__rate_interval]))",
        },
        "short",
    ),
    Panel(
        "Preemptions",
        {"{{ReplicaId}}": f"sum by (ReplicaId) (rate(ray_vllm_num_preemptions_total{{{PICK}}}[$__rate_interval]))"},
        text="Requests put back because the KV cache was full.",
    ),
    Panel("GPU utilisation", {"{{Hostname}} {{gpu}}": "DCGM_FI_DEV_GPU_UTIL"}, "percent"),
)
POPULATIONS = (
    Panel(
        "Done",
        {"done": f"1 - sum({LEFT}) / sum(ray_serve_app_population_rows{{{PICK}}})"},
        "percentunit",
        "gauge",
        "Of the rows of all running jobs.",
    ),
    Panel("Rows left", {"rows": f"sum({LEFT})"}, kind="stat"),
    Panel(
        "Time left",
        {"left": f"sum({LEFT}) / sum({ROWS})"},
        "s",
        "stat",
    ),
    Panel("Jobs", {"running or waiting": f"sum(ray_serve_app_population_jobs{{{PICK}}})"}, kind="stat"),
    Panel("Rows a second, by replica", {"{{replica}}": ROWS}, "rowsps"),
    Panel(
        "Rows by outcome",
        {"{{status}}": f"sum by (status) (rate(ray_serve_app_prompts_total{{{PICK}}}[$__rate_interval]))"},
        "rowsps",
    ),
    Panel(
        "Replicas",
        {
            "wanted": f"sum(ray_serve_app_population_replicas_wanted{{{PICK}}})",
            "at work": f"count({ROWS} > 0)",
        },
    ),
    Panel(
        "Time of a chunk",
        {
            f"p{q}": f"histogram_quantile(0.{q}, sum by (le) "
            f"(rate(ray_serve_app_chunk_seconds_bucket{{{PICK}}}[$__rate_interval])))"
            for q in (50, 95)
        },
        "s",
    ),
    Panel(
        "Prompt tokens of populations from the prefix cache",
        {
            "share": f'sum(rate(ray_serve_app_tokens_total{{{PICK}, kind="cached"}}[$__rate_interval])) / '
            f'sum(rate(ray_serve_app_tokens_total{{{PICK}, kind="prompt"}}[$__rate_interval]))'
        },
        "percentunit",
    ),
    Panel("GPUs", {"allocated": GPUS}, kind="stat"),
    Panel("Cost an hour", {"USD": f"{GPUS} * $usd_per_gpu_hour"}, "currencyUSD", "stat"),
    Panel(
        "Cost of a million rows",
        {"USD": f"sum({GPUS}) * $usd_per_gpu_hour / 3.6e-3 / sum({ROWS})"},
        "currencyUSD",
        "stat",
        "At the present rate: USD an hour over rows an hour, times a million.",
    ),
)
DASHBOARDS = {"serve-app": ("serve_app: server", SERVER), "populations": ("serve_app: populations", POPULATIONS)}


def dashboard(name: str) -> str:
    title, panels = DASHBOARDS[name]
    document = {
        "uid": f"serve-app-{name}",
        "title": title,
        "tags": ["serve-app"],
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "schemaVersion": 39,
        "templating": {"list": _variables()},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }
    return json.dumps(document, indent=1) + "\n"


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    head = 'up{job=~".*-ray-head"}'
    space = _choice("namespace", "Namespace", f"label_values({head}, namespace)")
    ours = _choice("installation", "Installation", f'label_values({head[:-1]}, namespace="$namespace"}}, installation)')
    # Prices differ by region and contract (cluster/cost.sh asks AWS for list prices).
    price = {"name": "usd_per_gpu_hour", "type": "textbox", "query": "1", "label": "USD a GPU and hour"}
    return [source, space, ours, price]


def _choice(name: str, label: str, query: str) -> dict[str, Any]:
    """A variable of which Prometheus has the values; they are asked for again when the time range changes."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "name": name, "label": label, "type": "query", "datasource": source, "refresh": 2, "sort": 1,
        "definition": query, "query": {"query": query, "refId": name},
    }  # fmt: skip


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "title": panel.title,
        "description": panel.text,
        "type": panel.kind,
        "datasource": source,
        "gridPos": {"x": WIDTH * (number % 2), "y": HEIGHT * (number // 2), "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }
