"""Click-through prediction on a running server, and a demo that starts its own."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from serve_app import extras
from serve_app.cli.common import (
    CONFIG_HELP,
    DEFAULT_URL,
    BaseUrl,
    Json,
    Open,
    config_file,
    connect,
    default_group,
    goes_on_without_us,
    output_of,
    refuse,
    spelling,
    tell_files,
)
from serve_app.cli.ctr_calibrate import calibrate
from serve_app.cli.ctr_compare import compare
from serve_app.cli.ctr_options import bank_name, make_study, platform_context, profile_file, read_calibration
from serve_app.cli.provider import (
    OWN_REPLICAS,
    InputPrice,
    OutputPrice,
    ProviderOptions,
    price_fields,
    provider_options,
)
from serve_app.cli.server import print_notes
from serve_app.errors import BadSettings, ServerUnavailable

if TYPE_CHECKING:
    from serve_app.client.populations import PopulationClient
    from serve_app.workloads.ctr.statistics.calibration import Calibration
    from serve_app.workloads.ctr.study import Study

app = typer.Typer(
    cls=default_group("predict"), help="Click-through of ads over a population: predict, compare, calibrate."
)

Ad = Annotated[str, typer.Option("--ad", help="Text of the ad.")]
Platform = Annotated[str, typer.Option("--ad-platform", help="facebook, tiktok, amazon, or one of --platforms.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the population.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the runs; results go to a folder named by the job id.")]
# Dollars.
REPLICA_HOUR = 0.10


# Renamed from `--batch-size` to `--batch-rows`.
@app.command(context_settings=spelling({"batch-size": "batch-rows"}))
@provider_options
def predict(
    context: typer.Context,
    ad: Ad = "",
    ad_platform: Platform = "facebook",
    ad_platform_context: Annotated[str, typer.Option(help="Where the ad appears, in words; then any platform.")] = "",
    platforms: Annotated[Path | None, typer.Option(help="YAML or JSON: platforms' names and descriptions.")] = None,
    mode: Annotated[str, typer.Option(help="score: exact label probabilities; explain: reasons, as JSON.")] = "score",
    swap: Annotated[str, typer.Option(help="Ask again with swapped labels: none, order (2 rows a person) or words (4).")
                    ] = "none",
    population_size: Annotated[int | None, typer.Option(help="People; default: 1000, or all of --profiles.")] = None,
    seed: Seed = 42,
    bank: Annotated[str, typer.Option(help="Identity bank: default, rich, or a YAML or JSON file of your own.")] = "",
    persona: Annotated[str, typer.Option(help="default or rich (interests, traits): short for that bank.")] = "",
    profiles: Annotated[Path | None, typer.Option(help="Your own people: CSV, Excel, JSONL or Parquet.")] = None,
    mapped: Annotated[list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="Use these columns only.")
                   ] = None,
    id_column: Annotated[str, typer.Option(help="Column of --profiles with ids.")] = "",
    weights: Annotated[str, typer.Option(help="Column of --profiles with weights.")] = "",
    describe: Annotated[str, typer.Option(help='How people of --profiles are described: "{age}, from {city}".')] = "",
    require: Annotated[list[str] | None, typer.Option(help="Attribute that nobody may lack, or all; may be repeated.")
                       ] = None,
    stratify: Annotated[list[str] | None, typer.Option(help="Attribute, or age:30,45,60; may be repeated.")] = None,
    allocation: Annotated[str, typer.Option(help="People a stratum: proportional or equal.")] = "proportional",
    calibration: Annotated[Path | None, typer.Option(help="File of `serve-app ctr calibrate`.")] = None,
    answering: ProviderOptions = OWN_REPLICAS,
    price: Annotated[float | None, typer.Option(
        "--price", min=0, help=f"Dollars for one replica's hour, for the cost; default: {REPLICA_HOUR:g}.")] = None,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    resume: Annotated[str, typer.Option("--resume", metavar="JOB_ID", help="Go on with a job; takes its study.")] = "",
    out: Out = Path("runs"),
    base_url: BaseUrl = DEFAULT_URL,
    open_page: Open = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Predict click-through of an ad over a population, on a running server."""
    started = time.monotonic()
    output = output_of(as_json)
    client, study, job = connect(base_url), None, {}
    if resume:
        refuse(
            context,
            besides={"resume", "calibration", "out", "base_url", "open_page", "as_json"},
            why=f"not with --resume, which takes what job '{resume}' was submitted with: leave it out",
        )
    else:
        if not ad.strip():
            raise BadSettings("--ad is empty: give the text of the ad")
        study = make_study(
            ad=ad, platform=ad_platform, context=platform_context(ad_platform, ad_platform_context, platforms),
            mode=mode, swap=swap, size=population_size, seed=seed, bank=bank_name(bank, persona),
            profiles=profile_file(profiles, mapped or [], id_column, weights, describe, require or []),
            strata=tuple(stratify or ()), allocation=allocation,
        )  # fmt: skip
        say_people(study, output)
        job = answering.job_fields()
        external = "provider" in job
        replica_hour = REPLICA_HOUR if price is None and not external else price
        job |= price_fields(external, replica_hour, input_price, output_price)
    known = read_calibration(calibration, study)
    report = run_study(
        client, study, resume=resume, out=out, output=output, calibration=known, open_page=open_page, **job
    )
    finish(report, started)


app.command()(compare)
app.command()(calibrate)


def demo(
    ad: Ad = "New smartphone launch",
    ad_platform: Platform = "facebook",
    population_size: Annotated[int, typer.Option("--population-size", help="Number of synthetic profiles.")] = 1000,
    seed: Seed = 42,
    out: Out = Path("runs"),
    price: Annotated[float, typer.Option("--price", min=0, help="Dollars for one replica's hour, for the cost.")
                     ] = REPLICA_HOUR,
    config: Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line, with the start's stages.")] = False,
) -> None:  # fmt: skip
    """Start Ray and the replicas on this machine, predict click-through, stop everything."""
    from serve_app.client.populations import PopulationClient
    from serve_app.serving.launch.config import ServeConfig, check_store
    from serve_app.serving.launch.local import local_serve, stages_line, start_stages

    started = time.monotonic()
    output = output_of(as_json)
    study = make_study(ad=ad, platform=ad_platform, size=population_size, seed=seed)
    extras.require(extras.PLOTS)  # early: the report is last
    check_store(out)
    log = out / "serve.log"
    path = config_file(config)
    settings = ServeConfig.load(path)
    settings.check()
    print_notes(settings, output)
    output.print(f"starting Ray and the replicas of {path} (log: {log})")
    with local_serve(path, log=log, on_wait=lambda message: output.print(f"  {message}", markup=False)) as base_url:
        start_s = time.monotonic() - started
        stages = start_stages(log)
        output.print(f"replicas ready after {start_s:.0f} s: {stages_line(stages)}", highlight=False)
        client = PopulationClient(base_url)
        dtype = client.replicas()[0].engine.dtype
        report = run_study(client, study, out=out, output=output, **price_fields(False, price, None, None))
    output.print(
        f"time: start {start_s:.0f} s, run {report['run_s']:.0f} s, "
        f"stop and the rest {time.monotonic() - started - start_s - report['run_s']:.0f} s"
    )
    times: dict[str, Any] = {"dtype": dtype, "setup_s": setup_seconds(), "start_s": start_s, "run_s": report["run_s"]}
    finish(report, started, **times, **({"timeline": stages} if as_json else {}))


def setup_seconds() -> float | None:
    """Seconds of the last installing `make setup`; None without one."""
    with suppress(OSError, ValueError, KeyError):
        return float(json.loads((Path(sys.prefix) / "setup.json").read_text())["setup_s"])
    return None


def say_people(study: Study, output: Console) -> None:
    """Print how a people file was read, with an example."""
    if (summary := study.people_summary) is not None:
        first = next(person for person in study.people if person.error is None)
        output.print(f"{study.profiles and study.profiles.path} {summary.text}", markup=False, highlight=False)
        output.print(f"the model will see {first.id} as: {first.description}", markup=False, highlight=False)


def run_study(
    client: PopulationClient,
    study: Study | None,
    *,
    out: Path,
    output: Console,
    resume: str = "",
    calibration: Calibration | None = None,
    open_page: bool = False,
    **job: Any,
) -> dict[str, Any]:
    """Submit or resume the study's job, follow it, and write and print its report; return the figures."""
    from serve_app.client.progress import JobProgress
    from serve_app.serving.launch.config import check_store
    from serve_app.workloads.ctr.report import figures
    from serve_app.workloads.ctr.report.study_report import StudyReport
    from serve_app.workloads.ctr.study import Study

    check_store(out)
    if study is None:
        study, job_id = Study.of_job(client, resume), resume
        client.resume(resume)
    else:
        job_id = study.submit(client, **job)
    output.print(f"job {job_id}: {len(study.people):,} profiles, ad: {study.ad}", markup=False, highlight=False)
    with (
        goes_on_without_us(job_id, client.base_url, "ctr predict --resume"),
        JobProgress(output) as progress,
    ):
        result = study.follow(client, job_id, progress)
    report = StudyReport(study, result, calibration)
    paths = report.write(out / job_id)
    output.print(figures.as_table(report.figures))
    if result.label_bias is not None:
        output.print(_bias_line(report.figures), markup=False, highlight=False)
    tell_files(paths, output, open_page=open_page)
    return report.figures


def _bias_line(figures: dict[str, Any]) -> str:
    parts = [
        f"{what} moves a click's probability by {figures[f'{key}_before']:.1%} "
        f"({figures[f'{key}_after']:.1%} after removing what all people share)"
        for key, what in (("label_swap_bias", "swapping the labels' order"), ("label_word_bias", "other label words"))
        if f"{key}_before" in figures
    ]
    return f"bias: {'; '.join(parts)}; predictions are the mean over both orders"


def finish(report: dict[str, Any], started: float, **more: Any) -> None:
    """Print the JSON line, with `more` in it. Raises ServerUnavailable if answers are missing."""
    keys = ("rows", "ok", "failed", "people", "answered", "replicas", "tp", "rows_per_s", "ctr", "ctr_raw",
            "cached_token_share", "label_swap_bias_before", "label_swap_bias_after")  # fmt: skip
    line = {key: report[key] for key in keys if key in report}
    line |= more | {"wall_s": round(time.monotonic() - started, 2)}
    if report["simulated"]:
        line["simulated"] = True
    print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
    if report["state"] == "completed_with_failures":  # final: nothing to resume
        raise ServerUnavailable(
            f"job {report['job_id']}: {report['invalid']:,} rows could not be asked and {report['failed']:,} have no "
            "answer; the results say why, row by row"
        )
    if report["state"] != "completed":
        why = report["message"] or "see its results"
        raise ServerUnavailable(
            f"job {report['job_id']} ended {report['state']}: {why}; `serve-app ctr predict --resume "
            f"{report['job_id']}` runs the rows that have no outcome"
        )
    if missing := report["people"] - report["answered"]:
        raise ServerUnavailable(
            f"{missing:,} of {report['people']:,} people have no answer that could be read: see column 'error' of the "
            "results; the figures leave them out"
        )
