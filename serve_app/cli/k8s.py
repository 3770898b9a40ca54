"""`serve-app k8s`: manifests from k8s/values.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.common import Json, console, print_whole

app = typer.Typer(help="Kubernetes manifests from k8s/values.yaml.", no_args_is_help=True)

Preset = Annotated[str, typer.Option("--preset", help="One of `serve-app k8s presets`.")]
ValuesFile = Annotated[Path, typer.Option("--values", help="The values file.")]
DEFAULT_VALUES = Path("k8s/values.yaml")


@app.callback()
def _group() -> None:
    """Render manifests, checked by the rules of serve_app.k8s.rules."""


@app.command()
def presets(values: ValuesFile = DEFAULT_VALUES, as_json: Json = False) -> None:
    """The presets: model, GPUs, parallelism, replicas."""
    from rich.table import Table

    from serve_app.k8s.values import Values

    if as_json:
        print(json.dumps({name: one.model_dump(mode="json") for name, one in Values.load(values).presets.items()}))
        return
    table = Table("preset", "model", "GPU", "tensor × pipeline", "replicas", "GPUs at most")
    for name, preset in Values.load(values).presets.items():
        ranks, bounds = preset.tensor_parallel * preset.pipeline_parallel, preset.replicas
        table.add_row(
            name,
            preset.model,
            preset.gpu or "–",
            f"{preset.tensor_parallel} × {preset.pipeline_parallel}",
            str(bounds.min) if bounds.fixed else f"{bounds.min} to {bounds.max}",
            str(ranks * bounds.max) if preset.gpu else "–",
        )
    print_whole(table)


@app.command()
def render(
    preset: Preset = "",
    way: Annotated[
        str, typer.Option("--way", help="server, download, vllm, vllm-job, population or kernels.")
    ] = "server",
    serve_config: Annotated[
        bool, typer.Option("--serve-config", help="Only the Serve config file, as `serve run` takes it.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write every rendered file of k8s/ and cluster/ anew.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the whole installation, as the values' `run` says.")
    ] = None,
    values: ValuesFile = DEFAULT_VALUES,
) -> None:
    """Print the manifests of a preset, or write an installation for kubectl, Argo CD or Flux."""
    from serve_app.errors import BadSettings
    from serve_app.k8s import render as rendering
    from serve_app.k8s.ray_service import yaml_text
    from serve_app.k8s.serve_config import serve_config as make_config
    from serve_app.k8s.values import Values

    known = Values.load(values)
    if write:
        _write(rendering.rendered_files(known))
    elif out:
        _write({out / name: content for name, content in rendering.installation(known).items()})
    elif not preset:
        raise BadSettings(f"give --preset ({', '.join(known.presets)}), --out or --write")
    elif serve_config:
        print(yaml_text(make_config(known, known.preset(preset))), end="")
    else:
        print(rendering.render(known, way, preset), end="")


@app.command()
def chart(
    out: Annotated[Path, typer.Option("--out", help="Folder of the chart.")],
    values: ValuesFile = DEFAULT_VALUES,
) -> None:
    """Write a Helm chart. Presets, GPU types and the population are the values file's, the rest set at install time."""
    from serve_app.errors import BadSettings
    from serve_app.k8s.chart.chart import chart as make_chart
    from serve_app.k8s.values import Values

    files = {out / path: content for path, content in make_chart(Values.load(values)).items()}
    if others := {path for path in out.glob("templates/**/*") if path.is_file()} - files.keys():
        raise BadSettings(f"--out: {', '.join(map(str, sorted(others)))}: not of this chart, and Helm would render it")
    _write(files)


@app.command()
def schema() -> None:
    """JSON schema of a values file, for editors."""
    from serve_app.k8s.values import json_schema

    print(json_schema(), end="")


def _write(files: dict[Path, str]) -> None:
    for path, content in files.items():
        changed = not path.exists() or path.read_text() != content
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        console.print(f"{path}: {'written' if changed else 'as it was'}", markup=False, highlight=False)
