"""Renders one way to run a preset, an installation, or the repository's generated files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import BadSettings
from serve_app.k8s.dashboards import DASHBOARDS, dashboard
from serve_app.k8s.installation.base import base, from_template, way_in
from serve_app.k8s.kernels import evaluators
from serve_app.k8s.model_download import model_download
from serve_app.k8s.node_pools import node_pools
from serve_app.k8s.options.alerts import receiver
from serve_app.k8s.pods import Manifest
from serve_app.k8s.ray_jobs import multi_node, population_job
from serve_app.k8s.ray_service import ray_service
from serve_app.k8s.rules import check
from serve_app.k8s.rules.manifests import selects, templates
from serve_app.k8s.standalone import vllm_deployment, vllm_job
from serve_app.k8s.values import Preset, Values, json_schema
from serve_app.k8s.write_back import written_back

Build = Callable[[Values, Preset], list[Manifest]]


def server(values: Values, preset: Preset) -> list[Manifest]:
    """A RayService, or for several nodes a RayJob, and the weights' download."""
    return [*model_download(values, preset), *(multi_node if preset.multi_node else ray_service)(values, preset)]


WAYS: dict[str, Build] = {
    "server": server,
    "download": model_download,
    "vllm-job": vllm_job,
    "vllm": vllm_deployment,
    "population": population_job,
    "kernels": evaluators,
}


@dataclass(frozen=True, slots=True)
class Overlay:
    """A folder of k8s/overlays."""

    name: str

    @property
    def folder(self) -> Path:
        return Path("k8s/overlays") / self.name

    def values(self, root: Path = Path()) -> Values:
        return Values.load(root / self.folder / "values.yaml")


OVERLAYS = tuple(map(Overlay, ("local", "eks", "multi-node", "vllm-job", "vllm", "population", "kernels")))
NODE_POOLS = {Path("cluster/eks/node-pools.yaml"): False, Path("cluster/eks/auto-mode/node-pools.yaml"): True}
# Plain manifests with a kustomization, for kubectl, Argo CD and Flux.
KUSTOMIZATION: Manifest = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


def render(values: Values, way: str, preset_name: str) -> str:
    """Checked manifests of one way to run one preset.

    Raises BadSettings for an unknown way or preset, an invalid combination, or a broken rule.
    """
    manifests = checked(f"preset {preset_name}", build(values, way, preset_name), whole=False)
    return text(manifests, f"serve-app k8s render --way {way} --preset {preset_name}")


def build(values: Values, way: str, preset_name: str) -> list[Manifest]:
    """The objects. Raises BadSettings if way and preset do not go together."""
    preset = values.preset(preset_name)
    if way not in WAYS:
        raise BadSettings(f"--way '{way}' is unknown: use one of {', '.join(WAYS)}")
    if preset.gpu is None and way not in ("server", "population", "download"):
        raise BadSettings(f"--way {way} needs a preset with GPUs, and {preset_name} has none")
    if preset.multi_node and way not in ("server", "download"):
        raise BadSettings(f"--way {way} runs on one node, and {preset_name} needs {preset.pipeline_parallel}")
    if preset.gpu and values.shares_node and way != "download":
        raise BadSettings(f"storage.access: ReadWriteOnce is one node, and the pods of {preset_name} are on several")
    return [written_back(manifest) for manifest in WAYS[way](values, preset)]


def installation(values: Values) -> dict[str, str]:
    """An installation's files by name: everything in `run`, and the base.

    Raises BadSettings as `render` does, and for missing references and blocked network paths.
    """
    if values.alerts and not values.monitoring:
        raise BadSettings("alerts: needs monitoring: true, which has the rules that raise them")
    parts: dict[str, list[Manifest]] = {"base": base(values)} if values.base else {}
    parts |= {way: build(values, way, preset) for way, preset in values.run.items()}
    if values.base and values.has_ray_service:
        parts["ingress"] = way_in(values)
    everything = [manifest for part in parts.values() for manifest in part]
    if values.monitoring:
        parts["monitoring"] = monitors(values, everything)
        everything += parts["monitoring"]
    checked(f"installation {values.name}", everything, whole=values.base)
    files = {f"{name}.yaml": part for name, part in parts.items() if part}
    index = {**KUSTOMIZATION, "resources": list(files)}
    return {name: text(part, OUT) for name, part in {**files, "kustomization.yaml": [index]}.items()}


def monitors(values: Values, everything: list[Manifest]) -> list[Manifest]:
    """Monitors of the pods that there are, and a server's rules."""
    pods = [template.labels for template in templates(everything)]
    found = from_template(values, "monitors")
    chosen = [one for one in found if any(selects(one["spec"]["selector"], labels) for labels in pods)]
    rules = from_template(values, "rules") if values.has_ray_service else []
    return [*chosen, *rules, *receiver(values)]


def checked(what: str, manifests: list[Manifest], *, whole: bool) -> list[Manifest]:
    """The manifests. Raises BadSettings with every broken rule."""
    if problems := list(check(manifests, whole=whole)):
        raise BadSettings(f"{what}: " + "; ".join(map(str, problems)))
    return manifests


def rendered_files(values: Values, root: Path = Path()) -> dict[Path, str]:
    """Each generated file, by path relative to the repository's root."""
    files = {Path("k8s/values.schema.json"): json_schema()}
    ground = {"base.yaml": base(values), "kustomization.yaml": [{**KUSTOMIZATION, "resources": ["base.yaml"]}]}
    for name in ("monitors", "rules"):
        files[Path(f"k8s/monitoring/{name}.yaml")] = text(from_template(values, name), OUT)
    files |= {Path("k8s/base") / name: text(manifests, OUT) for name, manifests in ground.items()}
    for overlay in OVERLAYS:
        files |= {overlay.folder / name: content for name, content in installation(overlay.values(root)).items()}
    for name in DASHBOARDS:
        files[Path(f"k8s/monitoring/dashboards/{name}.json")] = dashboard(name)
    for path, auto_mode in NODE_POOLS.items():
        files[path] = text(node_pools(values, auto_mode=auto_mode), OUT)
    return files


OUT = "serve-app k8s render"


def text(manifests: list[Manifest], command: str) -> str:
    """YAML documents below the command that made them."""
    head = f"# Made by `{command}`: edit the values, not this.\n"
    return head + "---\n".join(
        yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for manifest in manifests
    )


class _Dumper(yaml.SafeDumper):
    """Multi-line text as blocks; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
