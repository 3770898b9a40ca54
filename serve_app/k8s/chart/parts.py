"""The chart's templates: base, way in, each way to run, monitoring, each rendered for all of its choices."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import ValidationError

from serve_app.errors import BadSettings
from serve_app.k8s.chart import fields
from serve_app.k8s.chart.choices import Choice, Combination, choice, chosen, combinations, overlay
from serve_app.k8s.chart.fields import FIELDS
from serve_app.k8s.chart.objects import Part, file, part
from serve_app.k8s.installation.base import base_part, base_parts, way_in
from serve_app.k8s.pods import Manifest
from serve_app.k8s.render import build, monitors
from serve_app.k8s.values import Values, Way

Runs = dict[Way, list[str]]  # the presets that a way can run
Build = Callable[[Values], list[Manifest]]
# Of the installation's base. One that is not here depends on the server at most.
BASE: dict[str, tuple[Choice, ...]] = {
    "namespace": (fields.NAMESPACE, fields.LEVEL),
    "priorities": (),
    "accounts": (fields.NAMESPACE, fields.LEVEL, fields.CLAIM, fields.CLASS, fields.PULL),
    "network": (fields.NAMESPACE, fields.MANAGED_REDIS),
    "claim": (fields.CLAIM, fields.CLASS, fields.ACCESS),
    "folders": (fields.CLAIM, fields.PREPARE, fields.PULL, fields.STORE, fields.POPULATION_STORE),
}
REDIS = (fields.MANAGED_REDIS, fields.PULL)
WAYS: dict[Way, tuple[Choice, ...]] = {
    "server": (fields.LEVEL, fields.ACCESS, fields.MANAGED_REDIS, fields.CLAIM, fields.PULL),
    "download": (fields.LEVEL, fields.CLAIM, fields.PULL),
    "vllm": (fields.ACCESS, fields.CLAIM, fields.PULL),
    "vllm-job": (fields.ACCESS, fields.CLAIM, fields.PULL),
    "population": (fields.ACCESS, fields.CLAIM, fields.PULL, fields.POPULATION_STORE),
    "kernels": (fields.ACCESS, fields.PULL),
}
MONITORED: tuple[Way, ...] = ("population", "vllm", "vllm-job")


def templates(values: Values, runs: Runs) -> dict[str, str]:
    """Files of the chart's templates/, by name."""
    document, server = placeholders(values), server_kind(values, runs)
    base = [
        _part(document, choices, partial(_base, name), name)
        for name, choices in {**dict.fromkeys(base_parts(values), (server,)), **BASE, "redis": (server, *REDIS)}.items()
    ]
    found = {"base.yaml": file("$.Values.base", *base)}
    for way, presets in runs.items():
        one = _part(document, (fields.preset_of(way, presets), *WAYS[way]), partial(_way, way), way)
        found[f"{way}.yaml"] = file(fields.runs(way), one)
    ingress = _part(document, (server, fields.INGRESS), lambda v: way_in(v) if v.has_ray_service else [], "ingress")
    found["ingress.yaml"] = file("$.Values.base", ingress)
    present = [fields.present(way, runs[way][0]) for way in MONITORED if way in runs]
    found["monitoring.yaml"] = file("$.Values.monitoring", _part(document, (server, *present), _monitors, "monitoring"))
    return found


def placeholders(values: Values) -> dict[str, Any]:
    """The values with placeholders for what is set at install time, and nothing to run."""
    document = values.model_dump(mode="json")
    overlay(document, FIELDS)
    return {**document, "run": {}, "base": True, "pod_security": "privileged"}


def possible_runs(values: Values) -> Runs:
    try:
        document = Values.model_validate(placeholders(values))
    except ValidationError as error:
        raise BadSettings(f"no chart can be made of these values: {_reason(error)}") from error
    found: Runs = {way: [name for name in values.presets if _goes(document, way, name)] for way in WAYS}
    return {way: presets for way, presets in found.items() if presets}


def _reason(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def _goes(values: Values, way: Way, preset: str) -> bool:
    try:
        return bool(build(values, way, preset))
    except BadSettings:
        return False


def server_kind(values: Values, runs: Runs) -> Choice:
    """No server, a RayService, or an engine over several nodes."""
    server = fields.runs("server")
    options: list[tuple[str, dict[str, Any]]] = [(f"not ({server})", {})]
    for multi_node in (False, True):
        if names := [name for name in runs.get("server", []) if values.presets[name].multi_node is multi_node]:
            options.append((f"eq ({server}) {' '.join(map(json.dumps, names))}", {"run": {"server": names[0]}}))
    return choice(*options)


def _base(name: str, values: Values) -> list[Manifest]:
    return base_part(values, name) if name in base_parts(values) else []


def _way(way: Way, values: Values) -> list[Manifest]:
    return build(values, way, values.run[way])


def _monitors(values: Values) -> list[Manifest]:
    return monitors(values, [manifest for way in values.run for manifest in _way(way, values)])


def _part(document: dict[str, Any], choices: tuple[Choice, ...], build: Build, name: str) -> Part:
    """Rendered for each combination of the choices, or refused with the reason."""
    made: dict[Combination, list[Manifest]] = {}
    refused: dict[Combination, str] = {}
    for combination in combinations(choices):
        try:
            made[combination] = build(Values.model_validate(chosen(document, choices, combination)))
        except BadSettings as error:
            refused[combination] = str(error)
        except ValidationError as error:
            refused[combination] = _reason(error)
    return part(choices, made, refused, name)
