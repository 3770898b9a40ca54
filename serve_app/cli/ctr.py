"""Click-through prediction: on a running server, and as a demo that starts its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from serve_app.cli.common import DEFAULT_URL, BaseUrl, console
from serve_app.errors import BadSettings, ServerUnavailable

if TYPE_CHECKING:
    from serve_app.client.populations import PopulationClient

Ad = Annotated[str, typer.Option("--ad", help="Text of the ad.")]
Platform = Annotated[str, typer.Option("--ad-platform", help="facebook, tiktok or amazon.")]
Size = Annotated[int, typer.Option("--population-size", help="Number of synthetic profiles.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the population.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the runs; results go to a folder named by the job id.")]
Price = Annotated[float, typer.Option("--price", min=0.0, help="Dollars for one replica's hour, for the cost.")]


def ctr(
    ad: Ad = "",
    ad_platform: Platform = "facebook",
    population_size: Size = 1000,
    seed: Seed = 42,
    resume: Annotated[str, typer.Option("--resume", metavar="JOB_ID", help="Go on with a job; takes its ad.")] = "",
    out: Out = Path("runs"),
    price: Price = 0.10,
    base_url: BaseUrl = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
) -> None:
    """Predict click-through of an ad over a synthetic population, on a running server."""
    started = time.monotonic()
    asked = {"ad": ad, "platform": ad_platform, "size": population_size, "seed": seed}
    output = Console(stderr=True, quiet=True) if as_json else console
    report = run_ctr(base_url, asked, resume=resume, out=out, price=price, output=output)
    finish(report, started)


def demo(
    ad: Ad = "New smartphone launch",
    ad_platform: Platform = "facebook",
    population_size: Size = 1000,
    seed: Seed = 42,
    out: Out = Path("runs"),
    price: Price = 0.10,
    config: Annotated[Path, typer.Option("--config", help="Serve config file.")] = Path("config.yaml"),
) -> None:
    """Start Ray and the replicas on this machine, predict click-through, stop everything."""
    from serve_app.serving.local import local_serve

    started = time.monotonic()
    check_ctr(ad, ad_platform, population_size, out)
    log = out / "serve.log"
    console.print(f"starting Ray and the replicas of {config} (log: {log})")
    with local_serve(config, log=log, on_wait=lambda message: console.print(f"  {message}", markup=False)) as base_url:
        start_s = time.monotonic() - started
        console.print(f"replicas ready after {start_s:.0f} s")
        asked = {"ad": ad, "platform": ad_platform, "size": population_size, "seed": seed}
        report = run_ctr(base_url, asked, out=out, price=price, output=console)
    console.print(
        f"time: start {start_s:.0f} s, run {report['run_s']:.0f} s, "
        f"stop and the rest {time.monotonic() - started - start_s - report['run_s']:.0f} s"
    )
    finish(report, started)


def check_ctr(ad: str, platform: str, size: int, out: Path) -> None:
    """Raise BadSettings or StoreError before anything starts."""
    from serve_app.serving.config import check_store
    from serve_app.workloads.ctr.profiles import generate_profiles
    from serve_app.workloads.ctr.prompts import render_rows

    render_rows(generate_profiles(min(size, 1)), ad, platform)
    check_store(out)


def run_ctr(
    base_url: str, asked: dict[str, Any], *, out: Path, price: float, output: Console, resume: str = ""
) -> dict[str, Any]:
    """Submit or resume, follow, report and write the results; the report's figures."""
    from serve_app.client.populations import PopulationClient
    from serve_app.client.progress import JobProgress
    from serve_app.workloads.ctr import report as ctr_report
    from serve_app.workloads.ctr.predict import predict, table
    from serve_app.workloads.ctr.profiles import generate_profiles

    client = PopulationClient(base_url)
    if resume:
        asked = client.status(resume)["metadata"]
        if "ad" not in asked:
            raise BadSettings(f"--resume: job '{resume}' was not submitted by `serve-app ctr`")
        client.resume(resume)
        job_id = resume
    else:
        job_id = submit_ctr(client, asked, out)
    output.print(f"job {job_id}: {asked['size']:,} profiles, ad: {asked['ad']}", markup=False, highlight=False)
    with JobProgress(output) as progress:
        status = client.wait(job_id, progress)
    outcomes = list(client.outcomes(job_id))
    figures = ctr_report.figures(
        status,
        [predict(outcome) for outcome in outcomes],
        ad=asked["ad"],
        platform=asked["platform"],
        seed=asked["seed"],
        price=price,
    )
    profiles = generate_profiles(asked["size"], asked["seed"])
    paths = ctr_report.write(out / job_id, table(profiles, outcomes), figures)
    output.print(ctr_report.as_table(figures))
    output.print("results: " + ", ".join(map(str, paths)), markup=False)
    return figures


def submit_ctr(client: PopulationClient, asked: dict[str, Any], out: Path) -> str:
    """Render the population and queue it; the job's id."""
    from serve_app.workloads.ctr.profiles import generate_profiles
    from serve_app.workloads.ctr.prompts import NO, WORKLOAD, YES, render_rows

    check_ctr(asked["ad"], asked["platform"], asked["size"], out)
    rows = render_rows(generate_profiles(asked["size"], asked["seed"]), asked["ad"], asked["platform"])
    return client.submit(rows, workload=WORKLOAD, labels=[YES, NO], metadata=asked)


def finish(report: dict[str, Any], started: float) -> None:
    """Print the JSON line and leave with 1 if any row has no answer."""
    keys = ("rows", "ok", "failed", "replicas", "tp", "rows_per_s", "ctr", "cached_token_share")
    line = {key: report[key] for key in keys}
    line["wall_s"] = round(time.monotonic() - started, 2)
    if report["simulated"]:
        line["simulated"] = True
    print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
    if report["state"] != "completed":
        why = report["message"] or "see its results"
        raise ServerUnavailable(
            f"job {report['job_id']} ended {report['state']}: {why}; `serve-app ctr --resume {report['job_id']}` "
            "runs the rows that have no outcome"
        )
