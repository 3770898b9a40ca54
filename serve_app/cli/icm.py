"""`serve-app icm`: labels by internal coherence, and serving presets for it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from serve_app import extras
from serve_app.cli.common import (
    DEFAULT_URL,
    BaseUrl,
    Json,
    Open,
    default_group,
    given,
    output_of,
    spelling,
    stops,
    tell_files,
)
from serve_app.cli.common import connect as connect_server
from serve_app.cli.provider import OWN, OWN_REPLICAS, RENAMED, ProviderOptions, address, provider_options
from serve_app.errors import BadSettings

if TYPE_CHECKING:
    from serve_app.workloads.icm.report import Report

app = typer.Typer(cls=default_group("run"), help="Label data by a model's own coherence (Wen et al. 2025).")

PRESETS = {"8B": "llama-3.1-8b", "70B": "llama-3.1-70b", "405B": "llama-3.1-405b"}
# Renamed or missing in a run's checkpoint.
ASKED = {"iterations": "K", "api_key_env": "provider_key_env"}
NOT_ASKED = {"resume", "out", "cluster", "as_json", "open_page", "base_url", "provider"}


@app.command(context_settings=spelling({**RENAMED, "K": "iterations"}))
@provider_options
def run(
    context: typer.Context,
    testbed: Annotated[str, typer.Option(help="reviews or claims (bundled); truthfulqa, gsm8k, alpaca or text, with "
                                              "--data; or a JSONL file.")] = "reviews",
    data: Annotated[Path | None, typer.Option(help="The testbed's rows: JSONL, a JSON array, CSV or Excel.")] = None,
    gold: Annotated[Path | None, typer.Option(help="Gold labels, JSONL of id and label; for evaluation only.")] = None,
    words: Annotated[str, typer.Option(help="Label words, the one for 0 first: negative,positive.")] = "",
    variant: Annotated[str, typer.Option(help="paper, or original for its published code's.")] = "paper",
    alpha: Annotated[float | None, typer.Option(help="First weight of predictability: 50, original 30.")] = None,
    fixed_alpha: Annotated[bool, typer.Option("--fixed-alpha", help="Do not lower it while all is rejected.")] = False,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="The paper's K; a resumed run may get more.")
                          ] = 3000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples, all scored in one call.")] = 256,
    num_seed: Annotated[int, typer.Option("--num-seed", min=1, help="Examples that begin with a random label.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    speculate: Annotated[int, typer.Option(min=0, help="Later proposals scored with one, at most.")] = 0,
    baselines: Annotated[bool, typer.Option(help="Also run the five baselines; needs gold labels.")] = True,
    shots: Annotated[int, typer.Option(min=1, help="Demonstrations of the few-shot baselines.")] = 32,
    baseline_seeds: Annotated[int, typer.Option("--baseline-seeds", min=1, help="Draws of demonstrations.")] = 3,
    cluster: Annotated[bool, typer.Option("--cluster", help="Replicas by handle, from inside the cluster.")] = False,
    answering: ProviderOptions = OWN_REPLICAS,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to go on with, by its own settings.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; goes on with one that is there.")] = Path("runs/icm"),
    base_url: BaseUrl = DEFAULT_URL,
    open_page: Open = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Label a dataset by the model's own coherence, without any given label (Wen et al. 2025)."""
    extras.require(extras.PLOTS)  # early: the report is last
    if not cluster:
        connect_server(base_url)
    from serve_app.workloads.icm.labelling import Labelling
    from serve_app.workloads.icm.scoring.connect import connect
    from serve_app.workloads.icm.search.runs import Run

    output = output_of(as_json)
    said = context.params if resume is None else {name: context.params[name] for name in given(context)}
    asked = {
        ASKED.get(name, name): str(value.absolute()) if isinstance(value, Path) else value
        for name, value in said.items()
        if name not in NOT_ASKED
    }
    if answering.provider != OWN:
        asked["provider_url"], key = address(answering.provider)
        asked["provider_key_env"] = answering.api_key_env or key
    if resume is None:
        answering.job_fields()  # raises
        labelling = Labelling.of(asked)
    else:
        if "out" in said and out.absolute() != resume.absolute():
            raise BadSettings(f"--out {out}: not with --resume, which goes on in {resume}")
        labelling, out = Labelling.resume(resume, asked), resume
    with (
        stops(lambda: f"go on with serve-app icm run --resume {out}" if Run(out).begun else "before the first step"),
        connect(base_url, model=labelling.model, provider=labelling.provider, cluster=cluster) as served,
        Progress(console=output, disable=output.quiet) as progress,
    ):
        task = progress.add_task("searching", total=None)
        report = labelling.run(
            served,
            out,
            on_step=lambda done, total: progress.update(task, completed=done, total=total),
            tell=lambda message: progress.console.print(message, markup=False, highlight=False),
        )
    paths = report.write(out)
    output.print(as_table(report))
    tell_files(paths, output, open_page=open_page)
    print(json.dumps({key: value for key, value in report.figures().items() if key != "asked"}), flush=True)


@app.command()
def preset(size: Annotated[str, typer.Argument(help="8B, 70B or 405B.")]) -> None:
    """Print the Serve config file for ICM on a model of that size."""
    if size not in PRESETS:
        raise BadSettings(f"there is no preset '{size}': use one of {', '.join(PRESETS)}")
    presets = files("serve_app.workloads.icm") / "presets"
    print((presets / f"{PRESETS[size]}.yaml").read_text(encoding="utf-8"), end="")


def as_table(report: Report) -> Table:
    finding = report.finding
    verdict = "they hold together" if finding.coherent else "THEY DO NOT HOLD TOGETHER"
    mark = " (SIMULATED ENGINE)" if report.simulated else ""
    table = Table(
        title=f"confidence in the labels {finding.confidence:.2f}, shuffled {finding.shuffled_confidence:.2f} "
        f"(chance 0.50): {verdict}{mark}",
        title_justify="left",
    )
    for column in ("method", "accuracy", "95 % interval", "seeds"):
        table.add_column(column)
    for name, found in report.accuracies.items():
        table.add_row(name, f"{found.mean:.1%}", f"{found.low:.1%} to {found.high:.1%}", str(found.seeds))
    return table
