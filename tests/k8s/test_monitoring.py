"""Alert rules and dashboards ask for what is there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from serve_app.driver.metrics import GAUGES, sums
from serve_app.spec import JobStatus
from tests.k8s import lint
from tests.k8s.checks import ROOT, load

DASHBOARDS = sorted((ROOT / "k8s/monitoring/dashboards").glob("*.json"))
RULES: list[dict[str, Any]] = [
    rule
    for document in load(lint.PROMETHEUS_RULES.read_text())
    for group in document["spec"]["groups"]
    for rule in group["rules"]
]
# Of kube-state-metrics, NVIDIA's exporter and Prometheus itself.
FOREIGN = re.compile(r"^(kube_\w+|DCGM_FI_\w+|up|ALERTS)$")


def queries() -> list[str]:
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    # Grafana's variables, as Grafana would put them.
    filled = [
        q.replace("$__rate_interval", "1m")
        .replace("$usd_per_gpu_hour", "1")
        .replace("$namespace", "n")
        .replace("$installation", "i")
        for q in asked
    ]
    return [rule["expr"] for rule in RULES] + filled


@pytest.mark.parametrize("query", queries())
def test_a_query_is_promql(query: str) -> None:
    import promql_parser

    promql_parser.parse(query)  # raises ValueError


def known_metrics() -> set[str]:
    """Names as Ray's agent has them: from our sources and vLLM's, and what the rules record."""
    ours = set()
    for path in (ROOT / "serve_app").rglob("*.py"):
        ours |= set(re.findall(r'"(serve_app_(?:prompts|tokens|chunk_seconds|http_\w+))"', path.read_text()))
    ours |= {f"serve_app_population_{name}" for name in GAUGES}
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    theirs = {name.replace(":", "_") for name in re.findall(r'"(vllm:\w+)"', source)}
    plain = {f"ray_{name}" for name in ours | theirs}
    return (
        plain
        | {f"{name}{end}" for name in plain for end in ("_total", "_bucket")}
        | {r["record"] for r in RULES if "record" in r}
    )


def test_every_metric_that_is_asked_for_exists() -> None:
    names = {name for query in queries() for name in re.findall(r"\b(?:ray_|serve_app:|DCGM|kube_)[\w:]*", query)}
    assert {name for name in names if not FOREIGN.match(name)} - known_metrics() == set()


def test_every_alert_names_a_chapter_of_the_runbook() -> None:
    chapters = {
        re.sub(r"[^\w -]", "", line.lstrip("#").strip()).lower().replace(" ", "-")
        for line in (ROOT / "cluster/README.md").read_text().splitlines()
        if line.startswith("#")
    }
    named = {rule["annotations"]["runbook"].partition("#")[2] for rule in RULES if "alert" in rule}
    assert named - chapters == set()


def test_every_rule_is_tested() -> None:
    text = lint.RULES_TEST.read_text()
    untested = {rule["alert"] for rule in RULES if "alert" in rule and rule["alert"] not in text}
    assert untested == set()


@pytest.mark.skipif(lint.tool("promtool") is None, reason="promtool is not here: run cluster/tools.sh")
def test_rules_fire_when_they_should_and_not_otherwise() -> None:
    promtool = lint.tool("promtool")
    assert promtool is not None
    assert lint.promtool_errors(promtool) == []


def test_gauges_are_sums_over_the_running_jobs() -> None:
    jobs = [
        JobStatus(id="a", state="running", total=100, ok=40, failed=10, cost=1.5),
        JobStatus(id="b", state="queued"),
    ]
    assert sums(jobs, 3) == {"jobs": 2, "rows": 100, "rows_left": 50, "replicas_wanted": 3, "cost_usd": 1.5}
