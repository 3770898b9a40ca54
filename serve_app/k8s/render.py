"""The rendered files of k8s/ and cluster/: what each holds, and its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import BadSettings
from serve_app.k8s.dashboards import DASHBOARDS, dashboard
from serve_app.k8s.kernels import evaluators
from serve_app.k8s.model_download import model_download
from serve_app.k8s.node_pools import node_pools
from serve_app.k8s.pods import Manifest
from serve_app.k8s.ray_jobs import multi_node, population_job
from serve_app.k8s.ray_service import ray_service
from serve_app.k8s.rules import check
from serve_app.k8s.standalone import vllm_deployment, vllm_job
from serve_app.k8s.values import Preset, Values
from serve_app.k8s.write_back import written_back

Build = Callable[[Values, Preset], list[Manifest]]


def server(values: Values, preset: Preset) -> list[Manifest]:
    """What serves a preset: a RayService, or for one engine over several nodes a RayJob; and the weights' download."""
    return [*model_download(values, preset), *(multi_node if preset.multi_node else ray_service)(values, preset)]


# The ways to run a preset.
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
    """What is rendered into k8s/overlays/NAME."""

    name: str
    way: str
    preset: str

    @property
    def path(self) -> Path:
        return Path("k8s/overlays") / self.name / "rendered.yaml"


OVERLAYS = (
    Overlay("local", "server", "cpu"),
    Overlay("eks", "server", "8b-tp2"),
    Overlay("multi-node", "server", "405b"),
    Overlay("vllm-job", "vllm-job", "8b-l4"),
    Overlay("vllm", "vllm", "8b-tp2"),
    Overlay("population", "population", "8b-tp2"),
    Overlay("kernels", "kernels", "8b-l4"),
)
NODE_POOLS = {Path("cluster/eks/node-pools.yaml"): False, Path("cluster/eks/auto-mode/node-pools.yaml"): True}


def render(values: Values, way: str, preset_name: str) -> str:
    """The manifests of one way to run one preset, checked by our rules.

    Raises BadSettings for a way or preset that there is not, that do not go together, or that break a rule.
    """
    preset = values.preset(preset_name)
    if way not in WAYS:
        raise BadSettings(f"--way '{way}' is unknown: use one of {', '.join(WAYS)}")
    if preset.gpu is None and way not in ("server", "population"):
        raise BadSettings(f"--way {way} needs a preset with GPUs, and {preset_name} has none")
    if preset.multi_node and way not in ("server", "download"):
        raise BadSettings(f"--way {way} runs on one node, and {preset_name} needs {preset.pipeline_parallel}")
    manifests = [written_back(manifest) for manifest in WAYS[way](values, preset)]
    if problems := list(check(manifests, whole=False)):
        raise BadSettings(f"preset {preset_name}: " + "; ".join(map(str, problems)))
    return text(manifests, f"serve-app k8s render --way {way} --preset {preset_name}")


def rendered_files(values: Values) -> dict[Path, str]:
    """Each committed file that is made from the values, relative to the repository's root, and its text."""
    files = {overlay.path: render(values, overlay.way, overlay.preset) for overlay in OVERLAYS}
    for name in DASHBOARDS:
        files[Path(f"k8s/monitoring/dashboards/{name}.json")] = dashboard(name)
    for path, auto_mode in NODE_POOLS.items():
        files[path] = text(node_pools(values, auto_mode=auto_mode), "serve-app k8s render --write")
    return files


def text(manifests: list[Manifest], command: str) -> str:
    """YAML documents under a line that says where they come from."""
    head = f"# Made by `{command}` from k8s/values.yaml. Edit that, then run `serve-app k8s render --write`.\n"
    return head + "---\n".join(
        yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for manifest in manifests
    )


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, and everything written out: no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
