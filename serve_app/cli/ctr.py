"""Click-through prediction: on a running server, and as a demo that starts its own."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from serve_app import extras
from serve_app.cli.common import CONFIG_HELP, DEFAULT_URL, BaseUrl, config_file, console
from serve_app.cli.ctr_calibrate import calibrate
from serve_app.cli.ctr_compare import compare
from serve_app.cli.ctr_options import bank_name, platform_context, profile_file
from serve_app.cli.provider import OWN, PROVIDERS, job_fields
from serve_app.cli.server import print_notes
from serve_app.errors import BadSettings, ServerUnavailable

if TYPE_CHECKING:
    from serve_app.workloads.ctr.result import Result
    from serve_app.workloads.ctr.study import Study

# A group that does its own work where no subcommand is named.
app = typer.Typer(help="Predict click-through of an ad over a population.", invoke_without_command=True)
app.command()(compare)
app.command()(calibrate)

Ad = Annotated[str, typer.Option("--ad", help="Text of the ad.")]
Platform = Annotated[str, typer.Option("--ad-platform", help="facebook, tiktok, amazon, or one of --platforms.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the population.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the runs; results go to a folder named by the job id.")]
Price = Annotated[float, typer.Option("--price", min=0.0, help="Dollars for one replica's hour, for the cost.")]


@app.callback()
def ctr(
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
    provider: Annotated[str, typer.Option(help=f"{OWN} replicas, {', '.join(PROVIDERS)}, or an address.")] = OWN,
    model: Annotated[str, typer.Option(help="The model that must answer; a provider's by its name there.")] = "",
    api_key_env: Annotated[str | None, typer.Option(help="Driver's environment variable with the provider's key.")
                           ] = None,
    batch_rows: Annotated[int | None, typer.Option("--batch-size", min=1, help="Rows a provider is given at once.")
                          ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests open at a provider.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="The provider's limit.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="The provider's limit.")] = None,
    resume: Annotated[str, typer.Option("--resume", metavar="JOB_ID", help="Go on with a job; takes its study.")] = "",
    out: Out = Path("runs"),
    price: Price = 0.10,
    base_url: BaseUrl = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
) -> None:  # fmt: skip
    """Predict click-through of an ad over a population, on a running server."""
    if context.invoked_subcommand is not None:
        return
    started = time.monotonic()
    output = Console(stderr=True, quiet=True) if as_json else console
    study = None
    if not resume:
        study = make_study(
            ad=ad, platform=ad_platform, context=platform_context(ad_platform, ad_platform_context, platforms),
            mode=mode, swap=swap, size=population_size, seed=seed, bank=bank_name(bank, persona),
            profiles=profile_file(profiles, mapped or [], id_column, weights, describe, require or []),
            strata=tuple(stratify or ()), allocation=allocation,
        )  # fmt: skip
        say_people(study, output)
    job = job_fields(
        provider, model, api_key_env=api_key_env, batch_rows=batch_rows, concurrency=concurrency,
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute,
    )  # fmt: skip
    report = run_ctr(
        base_url, study, resume=resume, out=out, price=price, output=output, calibration_file=calibration, **job
    )
    finish(report, started)


def demo(
    ad: Ad = "New smartphone launch",
    ad_platform: Platform = "facebook",
    population_size: Annotated[int, typer.Option("--population-size", help="Number of synthetic profiles.")] = 1000,
    seed: Seed = 42,
    out: Out = Path("runs"),
    price: Price = 0.10,
    config: Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line, with the start's stages.")] = False,
) -> None:
    """Start Ray and the replicas on this machine, predict click-through, stop everything."""
    from serve_app.client.populations import PopulationClient
    from serve_app.serving.launch.config import ServeConfig, check_store
    from serve_app.serving.launch.local import local_serve, stages_line, start_stages

    started = time.monotonic()
    output = Console(stderr=True, quiet=True) if as_json else console
    study = make_study(ad=ad, platform=ad_platform, size=population_size, seed=seed)
    extras.require(extras.PLOTS)  # now, as the report comes last
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
        dtype = PopulationClient(base_url).replicas()[0].engine.dtype
        report = run_ctr(base_url, study, out=out, price=price, output=output)
    output.print(
        f"time: start {start_s:.0f} s, run {report['run_s']:.0f} s, "
        f"stop and the rest {time.monotonic() - started - start_s - report['run_s']:.0f} s"
    )
    times: dict[str, Any] = {"dtype": dtype, "setup_s": setup_seconds(), "start_s": start_s, "run_s": report["run_s"]}
    finish(report, started, **times, **({"timeline": stages} if as_json else {}))


def setup_seconds() -> float | None:
    """What `make setup` took when it last installed something; None where something else set this up."""
    with suppress(OSError, ValueError, KeyError):
        return float(json.loads((Path(sys.prefix) / "setup.json").read_text())["setup_s"])
    return None


def make_study(**fields: Any) -> Study:
    """The study that the options say, its people included. Raises BadSettings before anything starts."""
    from serve_app.workloads.ctr.study import Study

    study = Study(**fields)
    if not study.streamed:
        study.people  # noqa: B018  # reads a file, draws a sample: raises
    return study


def say_people(study: Study, output: Console) -> None:
    """How a file of people was read, and one of them as the model will see it."""
    if (summary := study.people_summary) is not None:
        first = next(person for person in study.people if person.error is None)
        output.print(f"{study.profiles and study.profiles.path} {summary.text}", markup=False, highlight=False)
        output.print(f"the model will see {first.id} as: {first.description}", markup=False, highlight=False)


def run_ctr(
    base_url: str,
    study: Study | None,
    *,
    out: Path,
    price: float,
    output: Console,
    resume: str = "",
    calibration_file: Path | None = None,
    **job: Any,
) -> dict[str, Any]:
    """Submit or resume, follow, report and write the results; the report's figures."""
    from serve_app.client.populations import PopulationClient
    from serve_app.client.progress import JobProgress
    from serve_app.serving.launch.config import check_store
    from serve_app.workloads.ctr.report import figures as ctr_report
    from serve_app.workloads.ctr.report.page_run import run_page
    from serve_app.workloads.ctr.statistics.calibration import apply_calibration, load_calibration, source_of
    from serve_app.workloads.ctr.study import Study
    from serve_app.workloads.report.page import write_page

    check_store(out)
    calibration = load_calibration(calibration_file) if calibration_file else None
    client = PopulationClient(base_url)
    if study is None:
        asked = client.status(resume).metadata
        if "ad" not in asked:
            raise BadSettings(f"--resume: job '{resume}' was not submitted by `serve-app ctr`")
        study = Study.from_metadata(asked)
        client.resume(resume)
        job_id = resume
    else:
        job_id = study.submit(client, **job)
    output.print(f"job {job_id}: {len(study.people):,} profiles, ad: {study.ad}", markup=False, highlight=False)
    with JobProgress(output) as progress:
        status = client.wait(job_id, progress)
    result = study.result(status, client.outcomes(job_id))
    people, rate = result.table, None
    if calibration is not None:
        people, rate = apply_calibration(
            calibration, people, source_of([people], study.question.workload), study.platform
        )
    figures = ctr_report.figures(
        status, result.predictions, ad=study.ad, platform=study.platform, seed=study.seed, price=price, results=people
    )
    figures |= study_figures(study, result) | {"calibrated": rate and asdict(rate)}
    paths = ctr_report.write(out / job_id, people, figures)
    paths.append(
        write_page(run_page(figures, people, calibration=calibration, rate=rate), out / job_id / "report.html")
    )
    output.print(ctr_report.as_table(figures))
    if result.label_bias is not None:
        output.print(_bias_line(figures), markup=False, highlight=False)
    output.print("results: " + ", ".join(map(str, paths)), markup=False)
    return figures


def study_figures(study: Study, result: Result) -> dict[str, Any]:
    """What the report's figures do not know: how people were asked and drawn."""
    figures: dict[str, Any] = {
        "workload": study.question.workload,
        "mode": study.mode,
        "swap": study.swap,
        "bank": study.people_bank.identity if study.profiles is None else None,
        "profiles": str(study.profiles.path) if study.profiles is not None else None,
        "people_summary": study.people_summary and study.people_summary.figures,
    }
    if (bias := result.label_bias) is not None:
        figures |= {f"label_swap_bias_{name}": getattr(bias.position, name) for name in ("before", "after", "offset")}
        if bias.wording is not None:
            figures |= {
                f"label_word_bias_{name}": getattr(bias.wording, name) for name in ("before", "after", "offset")
            }
    return figures


def _bias_line(figures: dict[str, Any]) -> str:
    parts = [
        f"{what} moves a click's probability by {figures[f'{key}_before']:.1%} "
        f"({figures[f'{key}_after']:.1%} after removing what all people share)"
        for key, what in (("label_swap_bias", "swapping the labels' order"), ("label_word_bias", "other label words"))
        if f"{key}_before" in figures
    ]
    return f"bias: {'; '.join(parts)}; predictions are the mean over both orders"


def finish(report: dict[str, Any], started: float, **more: Any) -> None:
    """Print the JSON line, with `more` in it, and leave with 1 if any row has no answer."""
    keys = ("rows", "ok", "failed", "replicas", "tp", "rows_per_s", "ctr", "cached_token_share",
            "label_swap_bias_before", "label_swap_bias_after")  # fmt: skip
    line = {key: report[key] for key in keys if key in report}
    line |= more | {"wall_s": round(time.monotonic() - started, 2)}
    if report["simulated"]:
        line["simulated"] = True
    print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
    if report["state"] == "completed_with_failures":  # which is the end: nothing is left to resume
        raise ServerUnavailable(
            f"job {report['job_id']}: {report['invalid']:,} rows could not be asked and {report['failed']:,} have no "
            "answer; the results say why, row by row"
        )
    if report["state"] != "completed":
        why = report["message"] or "see its results"
        raise ServerUnavailable(
            f"job {report['job_id']} ended {report['state']}: {why}; `serve-app ctr --resume {report['job_id']}` "
            "runs the rows that have no outcome"
        )
