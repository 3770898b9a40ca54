"""The chart's files. Its values are those of a values file, less what is not in `FREE`."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from serve_app.k8s.chart.parts import Runs, possible_runs, templates
from serve_app.k8s.values import Values, json_schema

FILES = Path(__file__).with_name("files")
# Set at install time, with the fields of those that have some. All else is as in the values file.
FREE: dict[str, tuple[str, ...]] = {
    "name": (), "namespace": (), "base": (), "create_namespace": (), "pod_security": (), "operator_namespace": (),
    "monitoring_namespace": (), "private_cidrs": (), "monitoring": (), "run": (), "store": (), "population_store": (),
    "drain_s": (), "deadline_s": (),
    "images": ("registry", "cpu", "cuda", "redis", "busybox", "pull_secrets"),
    "storage": ("claim", "storage_class", "size", "access", "prepare"),
    "redis": ("address",),
    "ingress": ("kind", "host", "gateway_class", "issuer"),
}  # fmt: skip
# Without a value: the release's, and what the values file runs. Helm would lay a default under a user's own ways.
UNSET = ("name", "namespace", "run")
TEXT = r"^[^\s\"'\\{}]+$"
# Nothing else is mounted, and the folder is made by name.
STORE = r"^(/data/[^\s\"'\\{}/]+(/[^\s\"'\\{}/]+)*|[a-z0-9]+://[^\s\"'\\{}]+[^\s\"'\\{}/])$"


def chart(values: Values) -> dict[Path, str]:
    """Files by their path in the chart's folder."""
    runs = possible_runs(values)
    described = schema(runs)
    found = {
        "Chart.yaml": _yaml(
            {
                "apiVersion": "v2",
                "name": "serve-app",
                "description": "Whole-population LLM inference on Ray Serve and vLLM, by KubeRay",
                "type": "application",
                "version": version("serve-app"),
                "appVersion": version("serve-app"),
            }
        ),
        "values.yaml": values_file(values, described),
        "values.schema.json": json.dumps(described, indent=1, ensure_ascii=False) + "\n",
        "run.json": json.dumps(values.run) + "\n",
        **{f"templates/{path.name}": path.read_text() for path in sorted(FILES.iterdir())},
        **{f"templates/{name}": text for name, text in templates(values, runs).items()},
    }
    return {Path(name): text for name, text in found.items()}


def values_file(values: Values, described: dict[str, Any]) -> str:
    """The defaults, with what each field is."""
    properties = described["properties"]
    document = {**values.model_dump(mode="json"), "create_namespace": False}
    lines = ["# Made by `serve-app k8s chart`. Presets, GPU types and populations are those of its values file."]
    for name, fields in FREE.items():
        text = properties[name].get("description", name)
        if name in UNSET:
            default = json.dumps(values.run) if name == "run" else "the release's"
            lines += ["", f"# {text}; by default {default}", f"# {name}:"]
            continue
        value = {field: document[name][field] for field in fields} if fields else document[name]
        lines += ["", f"# {text}", *_yaml({name: value}).splitlines()]
    return "\n".join(lines) + "\n"


def schema(runs: Runs) -> dict[str, Any]:
    """JSON schema of the chart's values: of a values file's, with fewer fields and without texts that break YAML."""
    whole: dict[str, Any] = json.loads(json_schema())
    definitions = whole.pop("$defs")
    properties = {name: _safe(whole["properties"][name]) for name, fields in FREE.items() if not fields}
    for name, fields in FREE.items():
        if fields:
            known = definitions[name.capitalize()]
            properties[name] = {**known, "properties": {field: _safe(known["properties"][field]) for field in fields}}
    for name in ("store", "population_store"):
        properties[name]["pattern"] = STORE
    ways = {way: {"enum": presets} for way, presets in runs.items()}
    properties["run"] = {
        "type": "object", "description": whole["properties"]["run"]["description"],
        "properties": ways, "additionalProperties": False,
    }  # fmt: skip
    properties["global"] = {"type": "object"}  # Helm's, for charts within charts
    return {**whole, "properties": properties}


def _safe(field: dict[str, Any]) -> dict[str, Any]:
    """The field, whose texts have nothing that YAML or a template would take as its own."""
    if "anyOf" in field:
        return {**field, "anyOf": [_safe(one) for one in field["anyOf"]]}
    if field.get("type") == "array":
        return {**field, "items": _safe(field["items"])}
    return {"pattern": TEXT, **field} if field.get("type") == "string" and "enum" not in field else field


def _yaml(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
