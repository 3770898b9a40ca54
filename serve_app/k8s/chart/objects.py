"""Objects as a file of templates/: each where a choice has it, with the pipelines in place of placeholders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from serve_app.errors import BadSettings
from serve_app.k8s.chart.choices import Choice, Combination
from serve_app.k8s.chart.fields import FIELDS, LISTS, PIPELINES
from serve_app.k8s.chart.merge import Lines, Template
from serve_app.k8s.pods import Manifest
from serve_app.k8s.values import digest

# A Job's name, of which Helm makes the hash: `zz-job:TEMPLATE:END OF NAME`.
_JOB = re.compile(r"zz-job:([^:]+):([^\"]*)")
# What is left of a placeholder that was put to a use which no pipeline knows.
_LEFT = re.compile(r"[^\s]*(?:zz-|198\.51\.100|3539|3599|7078|5654\d{3}|65001)[^\s]*")


class Part(NamedTuple):
    defines: Lines
    lines: Lines


def part(
    choices: tuple[Choice, ...],
    made: Mapping[Combination, list[Manifest]],
    refused: Mapping[Combination, str],
    name: str,
) -> Part:
    template = Template(choices, LISTS)
    everywhere: dict[Combination, object] = {**made, **refused}
    defines: Lines = []
    lines: Lines = []
    for message in dict.fromkeys(refused.values()):
        so = {combination: one for combination, one in refused.items() if one == message}
        lines += template.guarded(
            everywhere, so, lambda having: [f"{{{{- fail {json.dumps(next(iter(having.values())))} }}}}"]
        )
    complete = {c: made[c] if c in made else made[_nearest(c, made)] for c in everywhere}
    for number, having in enumerate(_objects(complete).values()):
        define = f"serve-app.template.{name}-{number}"
        hashed = {c: part for c, manifest in having.items() if (part := _hashed(manifest, define))}
        if hashed:
            defines += [f'{{{{- define "{define}" -}}}}', *template.mapping(hashed, 0), "{{- end }}"]
        lines += template.guarded(complete, having, lambda having: ["---", *template.mapping(having, 0)])
    return Part(defines, lines)


def file(condition: str, *parts: Part) -> str:
    """Raises BadSettings for a placeholder in a place that no pipeline can fill."""
    lines = [line for part in parts for line in part.defines] + [f"{{{{- if {condition} }}}}"]
    text = "\n".join([*lines, *(line for part in parts for line in part.lines), "{{- end }}"]) + "\n"
    text = _JOB.sub(r'{{ include "serve-app.job-name" (list $ "\2" "\1") }}', text)
    for placeholder, pipeline in PIPELINES.items():
        text = text.replace(placeholder, f"{{{{ {pipeline} }}}}")
    if left := dict.fromkeys(_LEFT.findall(text)):
        raise BadSettings(f"a chart cannot say {', '.join(left)}: serve_app/k8s/chart/fields.py has no pipeline for it")
    return text


def _nearest(combination: Combination, made: Mapping[Combination, object]) -> Combination:
    """In place of one that is refused: the one that makes conditions simplest."""
    return min(made, key=lambda other: sum(a != b for a, b in zip(combination, other, strict=True)))


def _objects(made: Mapping[Combination, list[Manifest]]) -> dict[tuple[str, str], dict[Combination, Manifest]]:
    """By kind and name; by part where the name has a hash."""
    found: dict[tuple[str, str], dict[Combination, Manifest]] = {}
    for combination, manifests in made.items():
        for manifest in manifests:
            metadata = manifest["metadata"]
            hashed = re.search(r"-[0-9a-f]{8}$", metadata["name"])
            name = metadata["labels"]["serve-app/part"] if hashed else metadata["name"]
            found.setdefault((manifest["kind"], name), {})[combination] = manifest
    return found


def _hashed(manifest: Manifest, define: str) -> Manifest:
    """What a Job's name has a hash of. Takes the hash out of the name."""
    if manifest["kind"] != "Job":
        return {}
    stem, _, end = manifest["metadata"]["name"].rpartition("-")
    for part in (manifest["spec"], manifest["spec"]["template"]):
        if digest(part) == end:
            manifest["metadata"]["name"] = f"zz-job:{define}:{stem.removeprefix(FIELDS['name'])}"
            return dict(part)
    return {}
